// What a process does so that its forks are cheap.
//
// A fork pays for every page that its parent has, and again for every one of these that it writes to or, of
// the libraries, reads. So the interpreter's code and most of what it allocates go to a few huge pages, which
// count as one, and holes between what was allocated are filled, so that what a fork allocates lies together.
// Where the system has no huge pages (Linux before 6.1) or no glibc, less of this is done and nothing else
// changes. For the interpreter's only thread.
#pragma once

namespace restrl {

// At the start: what is allocated from here on lies where it fits into huge pages.
void allocate_in_huge_pages();

// Before the first fork.
void make_forks_cheap();

}  // namespace restrl
