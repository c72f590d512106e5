/* Calls the kernel KERNEL as TVM's runtime does, one thread. For every argument: its type's code and bits, its axes, and a file,
 * which is read before the call and written after it. Arrays begin 4 bytes behind where they are aligned.
 *
 * The structures and functions are those of tvm/ffi/c_api.h, dlpack.h and tvm/runtime/c_backend_api.h (apache-tvm 0.27).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  void* data;
  struct { int32_t type, number; } device;
  int32_t axes;
  struct { uint8_t code, bits; uint16_t lanes; } dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} Tensor;
typedef struct { int32_t kind; uint32_t padding; union { int64_t number; void* pointer; } value; } Any;
typedef struct { void* handle; int32_t tasks; } Group;
enum { TENSOR_POINTER = 7, MOST = 16 };

int KERNEL(void*, const Any*, int32_t, Any*);

void* TVMBackendAllocWorkspace(int type, int number, uint64_t size, int code, int bits) {
  return aligned_alloc(64, (size + 63) / 64 * 64);
}
int TVMBackendFreeWorkspace(int type, int number, void* memory) { free(memory); return 0; }
int TVMBackendParallelLaunch(int (*part)(int, Group*, void*), void* data, int tasks) {
  Group group = {0, 1};
  return part(0, &group, data);
}
int TVMFFIEnvModRegisterSystemLibSymbol(const char* name, void* symbol) { return 0; }
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; ++i) fputs(parts[i], stderr);
}

/* arguments: of each array "CODE BITS AXIS,AXIS,... FILE" */
int main(int count, char** given) {
  static Tensor tensors[MOST];
  static int64_t shapes[MOST][4];
  static Any arguments[MOST], result;
  size_t sizes[MOST];
  int arrays = (count - 1) / 4;
  for (int i = 0; i < arrays; ++i) {
    char **about = given + 1 + 4 * i, *rest = about[2];
    int axes = 0;
    sizes[i] = atoi(about[1]) / 8;
    for (; axes < 4 && *rest; ++axes) {
      shapes[i][axes] = strtoll(rest, &rest, 10);
      sizes[i] *= shapes[i][axes];
      if (*rest == ',') ++rest;
    }
    char* data = (char*)aligned_alloc(64, (sizes[i] + 4 + 63) / 64 * 64) + 4;
    FILE* file = fopen(about[3], "rb");
    if (fread(data, 1, sizes[i], file) != sizes[i]) return 2;
    fclose(file);
    Tensor tensor = {data, {1, 0}, axes, {atoi(about[0]), atoi(about[1]), 1}, shapes[i], 0, 0};
    tensors[i] = tensor;
    arguments[i].kind = TENSOR_POINTER;
    arguments[i].value.pointer = &tensors[i];
  }
  if (KERNEL(0, arguments, arrays, &result)) return 1;
  for (int i = 0; i < arrays; ++i) {
    FILE* file = fopen(given[4 + 4 * i], "wb");
    fwrite(tensors[i].data, 1, sizes[i], file);
    fclose(file);
  }
  return 0;
}
