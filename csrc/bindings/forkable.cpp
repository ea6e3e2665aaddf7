#include "forkable.h"

#include <Python.h>

#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <utility>
#endif

namespace restrl {

#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
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
    const ElfW(Phdr) & segment = info->dlpi_phdr[i];
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

// Where the interpreter's arenas go: slots in aligned memory, the first ones first.
constexpr std::size_t kArena = 1 << 20, kSlots = 8;
char* slots = nullptr;
bool taken[kSlots];
PyObjectArenaAllocator others;  // for what does not fit there

void* new_arena(void* context, std::size_t size) {
  for (std::size_t i = 0; i < kSlots && size == kArena; ++i) {
    if (!std::exchange(taken[i], true)) return slots + i * kArena;
  }
  return others.alloc(context, size);
}

void end_arena(void* context, void* arena, std::size_t size) {
  const std::size_t offset = static_cast<std::size_t>(static_cast<char*>(arena) - slots);
  if (offset >= kSlots * kArena) return others.free(context, arena, size);
  madvise(arena, size, MADV_DONTNEED);
  taken[offset / kArena] = false;
}

// New blocks of the interpreter's allocator come from the beginning of an unused pool, of any size.
void fill_pools() {
  constexpr std::size_t kPool = 16384, kFirst = 48;  // and what comes before its first block
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
}

std::uintptr_t heap_end() { return reinterpret_cast<std::uintptr_t>(sbrk(0)); }

// New blocks of `malloc` come from the end of the heap.
void fill_heap() {
  constexpr std::size_t kLargest = 1 << 16;
  const struct mallinfo2 about = mallinfo2();
  const std::uintptr_t end = heap_end() - about.keepcost;
  for (std::size_t size = kLargest; size >= 16; size = size > 2048 ? size / 2 : size - 16) {
    for (;;) {
      void* block = malloc(size);
      if (block == nullptr) return;
      if (reinterpret_cast<std::uintptr_t>(block) >= end - kPage) {
        free(block);
        break;
      }
    }
  }
}

std::uintptr_t heap_begin = 0;  // of what was allocated after `allocate_in_huge_pages`

}  // namespace

void allocate_in_huge_pages() {
  const std::size_t size = kSlots * kArena;
  void* room = mmap(nullptr, size + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return;
  const auto at = reinterpret_cast<std::uintptr_t>(room);
  slots = reinterpret_cast<char*>((at + kHuge - 1) / kHuge * kHuge);
  PyObject_GetArenaAllocator(&others);
  PyObjectArenaAllocator ours{others.ctx, new_arena, end_arena};
  PyObject_SetArenaAllocator(&ours);

  // The heap goes on at the beginning of a huge page: memory up to there is taken and never touched.
  // (To set the first of these ends that `malloc` adapts the others; they are what it would come to.)
  mallopt(M_TOP_PAD, kHuge);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
  heap_begin = (heap_end() + kHuge - 1) / kHuge * kHuge;
  const std::size_t free_bytes = mallinfo2().keepcost;
  if (malloc(heap_begin - heap_end() + free_bytes) == nullptr) heap_begin = 0;
}

void make_forks_cheap() {
  dl_iterate_phdr(text_of, nullptr);
  fill_pools();
  fill_heap();
  for (std::size_t i = 0; i < kSlots; i += kHuge / kArena) {
    if (slots != nullptr && taken[i]) madvise(slots + i * kArena, kHuge, kCollapse);
  }
  for (std::uintptr_t at = heap_begin; at != 0 && at + kHuge <= heap_end(); at += kHuge) {
    madvise(reinterpret_cast<void*>(at), kHuge, kCollapse);
  }
}

#else

void allocate_in_huge_pages() {}
void make_forks_cheap() {}

#endif

}  // namespace restrl
