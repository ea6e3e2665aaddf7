#include "forkable.h"

#include <Python.h>

#if defined(__GLIBC__)
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#endif

namespace restrl {

#if defined(__GLIBC__)
namespace {

constexpr std::uintptr_t kHuge = 2 << 20;
constexpr std::uintptr_t kPage = 4096;
constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1

// Replaces [at, at + kHuge) by a copy in one huge page. False where the system has none to give.
bool in_one_page(std::uintptr_t at, bool executable) {
  void* room = mmap(nullptr, 2 * kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return false;
  const auto begin = reinterpret_cast<std::uintptr_t>(room);
  const std::uintptr_t aligned = (begin + kHuge - 1) / kHuge * kHuge;
  void* copy = reinterpret_cast<void*>(aligned);
  void* place = reinterpret_cast<void*>(at);
  madvise(copy, kHuge, MADV_HUGEPAGE);
  std::memcpy(copy, place, kHuge);
  const int protection = PROT_READ | (executable ? PROT_EXEC : 0);
  const bool moved = madvise(copy, kHuge, kCollapse) == 0 && mprotect(copy, kHuge, protection) == 0 &&
                     mremap(copy, kHuge, kHuge, MREMAP_MAYMOVE | MREMAP_FIXED, place) != MAP_FAILED;
  munmap(room, aligned - begin);
  munmap(reinterpret_cast<void*>(aligned + kHuge), begin + kHuge - aligned);
  if (!moved) munmap(copy, kHuge);
  return moved;
}

std::uintptr_t first_byte(const dl_phdr_info& info) {
  for (int i = 0; i < info.dlpi_phnum; ++i) {
    if (info.dlpi_phdr[i].p_type == PT_LOAD)
      return (info.dlpi_addr + info.dlpi_phdr[i].p_vaddr) / kPage * kPage;
  }
  return 0;
}

// Of the library that the interpreter is: the parts that are never written to, where they fill huge pages.
int text_of(dl_phdr_info* info, std::size_t, void*) {
  Dl_info interpreter{};
  if (dladdr(reinterpret_cast<void*>(&PyObject_Malloc), &interpreter) == 0 ||
      reinterpret_cast<std::uintptr_t>(interpreter.dli_fbase) != first_byte(*info))
    return 0;
  std::uintptr_t begin = 0, end = 0;  // of segments that follow each other
  bool executable = false;
  const auto move = [&] {
    for (std::uintptr_t at = (begin + kHuge - 1) / kHuge * kHuge; at + kHuge <= end; at += kHuge) {
      if (!in_one_page(at, executable)) return false;
    }
    return true;
  };
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const std::uintptr_t from = (info->dlpi_addr + segment.p_vaddr) / kPage * kPage;
    const std::uintptr_t to = (info->dlpi_addr + segment.p_vaddr + segment.p_filesz) / kPage * kPage;
    if ((segment.p_flags & PF_W) != 0 || from > end + kPage) {
      if (!move()) return 1;
      begin = end = 0;
      executable = false;
    }
    if ((segment.p_flags & PF_W) != 0) continue;
    if (begin == 0) begin = from;
    end = to;
    executable |= (segment.p_flags & PF_X) != 0;
  }
  return move() ? 0 : 1;
}

void fill_heap() {
  malloc_trim(0);
  const char* top = static_cast<const char*>(sbrk(0)) - kPage;
  for (std::size_t size = 1 << 16; size >= 16; size = size > 2048 ? size / 2 : size - 16) {
    for (;;) {
      void* block = malloc(size);
      if (block == nullptr) return;
      if (static_cast<const char*>(block) >= top) {
        free(block);
        break;
      }
    }
  }
}

}  // namespace
#endif

void make_forks_cheap() {
#if defined(__GLIBC__)
  dl_iterate_phdr(text_of, nullptr);
  constexpr std::size_t kPool = 16384, kFirst = 48;  // CPython's pools, and what comes before the first block
  constexpr int kMost = 1 << 14;
  for (std::size_t size = 16; size <= 512; size += 16) {
    for (int i = 0; i < kMost; ++i) {
      void* block = PyObject_Malloc(size);
      if (reinterpret_cast<std::uintptr_t>(block) % kPool == kFirst) {
        PyObject_Free(block);
        break;
      }
    }
  }
  fill_heap();
#endif
}

}  // namespace restrl
