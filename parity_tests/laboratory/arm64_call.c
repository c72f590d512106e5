/* Calls the function __tvm_ffi_matmul as TVM's runtime does, with arrays read from the files it is given; one thread.
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
enum { TENSOR_POINTER = 7 };

int __tvm_ffi_matmul(void*, const Any*, int32_t, Any*);

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

enum { MOST_TENSORS = 8, MOST_AXES = 4, SPARE = 64 };

static void fill(const char* name, void* data, size_t size) {
  FILE* file = fopen(name, "rb");
  if (!file || fread(data, 1, size, file) != size) exit(2);
  fclose(file);
}

/* arguments: for each array its type ("f32", "u8", "i32", ...), its sizes ("1x4x96") and its file; the last is written */
int main(int count, char** given) {
  int tensors = (count - 1) / 3;
  int64_t shapes[MOST_TENSORS][MOST_AXES];
  Tensor made[MOST_TENSORS] = {0};
  Any arguments[MOST_TENSORS] = {0}, result = {0};
  size_t size = 0;
  if (tensors < 1 || tensors > MOST_TENSORS) return 3;
  for (int i = 0; i < tensors; ++i) {
    const char* type = given[1 + 3 * i];
    Tensor* tensor = &made[i];
    tensor->device.type = 1;
    tensor->dtype.code = type[0] == 'i' ? 0 : type[0] == 'u' ? 1 : 2;
    tensor->dtype.bits = atoi(type + 1);
    tensor->dtype.lanes = 1;
    size = tensor->dtype.bits / 8;
    for (char* part = strtok(given[2 + 3 * i], "x"); part; part = strtok(0, "x")) {
      shapes[i][tensor->axes++] = atol(part);
      size *= atol(part);
    }
    tensor->shape = shapes[i];
    tensor->data = aligned_alloc(64, (size + SPARE) / 64 * 64 + 64);
    if (i + 1 < tensors) fill(given[3 + 3 * i], tensor->data, size);
    else memset(tensor->data, 0, size);
    arguments[i].kind = TENSOR_POINTER;
    arguments[i].value.pointer = tensor;
  }
  if (__tvm_ffi_matmul(0, arguments, tensors, &result)) return 1;
  FILE* out = fopen(given[3 * tensors], "wb");
  fwrite(made[tensors - 1].data, 1, size, out);
  return fclose(out);
}
