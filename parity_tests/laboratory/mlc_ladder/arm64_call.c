/* Calls the kernel __tvm_ffi_matmul as TVM's runtime does, with arrays read from the files it is given; one thread.
 *
 * The structures and functions are those of tvm/ffi/c_api.h, dlpack.h and tvm/runtime/c_backend_api.h (apache-tvm 0.27).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

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

static void* whole(const char* name, size_t* size) {
  FILE* file = fopen(name, "rb");
  fseek(file, 0, SEEK_END);
  *size = ftell(file);
  rewind(file);
  void* data = aligned_alloc(64, (*size + 63) / 64 * 64);
  if (fread(data, 1, *size, file) != *size) exit(2);
  fclose(file);
  return data;
}

/* arguments: rows, columns, bits of the row and the scales, files of the row, the words, the scales and the residual, a file to write */
int main(int count, char** given) {
  int64_t rows = atol(given[1]), columns = atol(given[2]);
  int bits = atoi(given[3]);
  int64_t shapes[5][3] = {{1, 1, columns}, {rows, columns / 8}, {rows, columns / 32}, {1, 1, rows}, {1, 1, rows}};
  int axes[5] = {3, 2, 2, 3, 3}, widths[5] = {bits, 32, bits, 32, 32}, codes[5] = {2, 1, 2, 2, 2};
  Tensor tensors[5];
  Any arguments[5], result = {0};
  size_t size = 0;
  for (int i = 0; i < 5; ++i) {
    Tensor tensor = {i < 4 ? whole(given[4 + i], &size) : calloc(rows + 16, 4), {1, 0}, axes[i], {codes[i], widths[i], 1}, shapes[i], 0, 0};
    tensors[i] = tensor;
    arguments[i].kind = TENSOR_POINTER;
    arguments[i].padding = 0;
    arguments[i].value.pointer = &tensors[i];
  }
  if (__tvm_ffi_matmul(0, arguments, 5, &result)) return 1;
  FILE* out = fopen(given[8], "wb");
  fwrite(tensors[4].data, 4, rows, out);
  return fclose(out);
}
