"""Whether the C library keeps the memory that a step has freed, which the next step will need again."""

import ctypes

# mallopt(3), malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER_TRIM = -1
_LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes; glibc's own threshold rises up to it, and it trims at twice that
_DEFAULT_MMAP_MAX = 65536


def keep_freed_memory(keep: bool = True) -> bool:
    """Keep freed blocks for the next allocations, or return them to the system, as glibc does by default.

    A step on a CPU allocates and frees each activation, megabytes in size. Returned memory comes back page by page,
    each zeroed by the kernel: 20,000 to 90,000 page faults in a step of ResNet-18 with 64 CIFAR-10 images, a twelfth of
    its time. The peak grows by a few per cent (docs/performance.md). Returns whether the C library supports this.
    """
    library = ctypes.CDLL(None)
    mallopt, trim = (getattr(library, name, None) for name in ("mallopt", "malloc_trim"))
    if mallopt is None or trim is None:
        return False
    if keep:
        return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER_TRIM))
    restored = (
        mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        and mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        and mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
    )
    trim(ctypes.c_size_t(0))
    return bool(restored)
