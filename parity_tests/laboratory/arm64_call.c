/* Calls the kernel KERNEL as TVM's runtime does, one thread. Every array is read from a file before the call and written to it
 * after; each begins OFFSET bytes behind an address that is a multiple of 64.
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
enum { TENSOR_POINTER = 7, MOST_TENSORS = 16, MOST_AXES = 4 };

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

/* arguments: for each array its type ("f32", "u8", "i32", ...), its sizes ("1x4x96") and its file */
int main(int count, char** given) {
  int tensors = (count - 1) / 3;
  int64_t shapes[MOST_TENSORS][MOST_AXES];
  size_t sizes[MOST_TENSORS];
  Tensor made[MOST_TENSORS] = {0};
  Any arguments[MOST_TENSORS] = {0}, result = {0};
  if (tensors < 1 || tensors > MOST_TENSORS) return 3;
  for (int i = 0; i < tensors; ++i) {
    const char* type = given[1 + 3 * i];
    Tensor* tensor = &made[i];
    tensor->device.type = 1;
    tensor->dtype.code = type[0] == 'i' ? 0 : type[0] == 'u' ? 1 : 2;
    tensor->dtype.bits = atoi(type + 1);
    tensor->dtype.lanes = 1;
    sizes[i] = tensor->dtype.bits / 8;
    for (char* part = strtok(given[2 + 3 * i], "x"); part; part = strtok(0, "x")) {
      if (tensor->axes == MOST_AXES) return 3;
      shapes[i][tensor->axes++] = atol(part);
      sizes[i] *= atol(part);
    }
    tensor->shape = shapes[i];
    tensor->data = (char*)aligned_alloc(64, (sizes[i] + OFFSET + 63) / 64 * 64) + OFFSET;
    FILE* file = fopen(given[3 + 3 * i], "rb");
    if (!file || fread(tensor->data, 1, sizes[i], file) != sizes[i]) return 2;
    fclose(file);
    arguments[i].kind = TENSOR_POINTER;
    arguments[i].value.pointer = tensor;
  }
  if (KERNEL(0, arguments, tensors, &result)) return 1;
  for (int i = 0; i < tensors; ++i) {
    FILE* file = fopen(given[3 + 3 * i], "wb");
    if (!file || fwrite(made[i].data, 1, sizes[i], file) != sizes[i] || fclose(file)) return 2;
  }
  return 0;
}
