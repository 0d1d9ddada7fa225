"""The filter of system calls (seccomp): which ones a program in the sandbox may not make.

It refuses what starts processes (threads are allowed), reaches a network, looks into other processes or signals them,
changes mounts, namespaces, keys or the machine, and what takes memory that no other limit counts. A refused call fails
with EPERM, a call that is newer than this list with ENOSYS. The numbers are the kernel's
(arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterable

OWN_PID = 0xFEEDFACE  # inside.py puts the program's process id in its place
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NEWEST = 470
_X32 = 0x40000000  # calls of another kind of x86-64 programs

_LOAD, _AND, _EQUAL, _ABOVE, _SET, _RETURN = 0x20, 0x54, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_THREAD = 0x00010000  # CLONE_THREAD
_UNIX, _STREAM, _TYPE_OF_SOCKET = 1, 1, 0xF
_SET_PDEATHSIG = 1
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_F_SETOWN, _F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = (
    8,
    15,
    0x8901,
    0x8902,
)  # the kernel signals an owner for a file
_CUT, _ACCESS = 0x200, 3  # O_TRUNC and O_ACCMODE

# name -> number on x86_64 and on aarch64; None where there is none.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # processes
    "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "tkill": (200, 130), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "setpriority": (141, 140), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # networks
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242), "bind": (49, 200),
    "listen": (50, 201),
    # memory that RLIMIT_AS does not count, and queues that outlive the program
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "quotactl": (179, 60), "quotactl_fd": (443, 443), "lookup_dcookie": (212, 18),
    # the kernel and the machine
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "acct": (163, 89), "syslog": (103, 116), "personality": (135, 92), "iopl": (172, None), "ioperm": (173, None),
    "modify_ldt": (154, None),
}  # fmt: skip
# What Landlock does not watch: modes, owners, times and attributes of files outside.
_REFUSED_WITHOUT_MOUNTS: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "truncate": (76, 45),
}  # fmt: skip
# Allowed with the first argument only as given.
_ONLY: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "kill": (62, 129, (OWN_PID,)),
    "tgkill": (234, 131, (OWN_PID,)),
    "rt_sigqueueinfo": (129, 138, (OWN_PID,)),
    "rt_tgsigqueueinfo": (297, 240, (OWN_PID,)),
    "prlimit64": (302, 261, (0, OWN_PID)),
    "sched_setaffinity": (203, 122, (0, OWN_PID)),
}
_CLONE, _CLONE3, _PRCTL, _IOCTL, _FCNTL = (56, 220), (435, 435), (157, 167), (16, 29), (72, 25)
_SOCKETPAIR, _OPEN, _OPENAT, _OPENAT2 = (53, 199), (2, None), (257, 56), (437, 437)


def filter_program(*, mounts: bool) -> bytes:
    """The filter as classic BPF, for prctl(PR_SET_SECCOMP). Raises KeyError on a machine of another kind.

    Args:
        mounts: whether the files outside are on read-only mounts or out of sight; else the calls that change their
            modes, owners, times and attributes are refused, too.
    """
    machine = platform.machine()
    architecture, column = _ARCHITECTURES[machine], list(_ARCHITECTURES).index(machine)
    refused = _REFUSED | ({} if mounts else _REFUSED_WITHOUT_MOUNTS)
    rules = [_op(_LOAD, 4), *_unless_equal(architecture, [_op(_RETURN, _KILL)]), _op(_LOAD, 0)]
    rules += [_op(_ABOVE, _NEWEST, 0, 1), _op(_RETURN, _ERROR | _ENOSYS)]  # x32's are above it, too
    for numbers in refused.values():
        if (number := numbers[column]) is not None:
            rules += _if_equal([number], [_op(_RETURN, _ERROR | _EPERM)])
    rules += _if_equal([_CLONE3[column]], [_op(_RETURN, _ERROR | _ENOSYS)])  # the C library then takes clone
    rules += _if_equal(
        [_CLONE[column]], [_argument(0), _op(_SET, _THREAD, 1, 0), _op(_RETURN, _ERROR | _EPERM)]
    )
    for *both, allowed in _ONLY.values():
        rules += _if_equal([both[column]], [_argument(0), *_unless_one_of(allowed)])
    # A pair of streams only: datagrams of a pair can be sent to any other socket, too.
    pair = [_argument(0), *_unless_equal(_UNIX, [_op(_RETURN, _ERROR | _EPERM)])]
    pair += [_argument(1), _op(_AND, _TYPE_OF_SOCKET), *_unless_one_of((_STREAM,))]
    rules += _if_equal([_SOCKETPAIR[column]], pair)
    if not mounts:
        rules += _if_equal([_OPENAT2[column]], [_op(_RETURN, _ERROR | _ENOSYS)])
        for number, place in ((_OPEN[column], 1), (_OPENAT[column], 2)):
            if number is not None:
                rules += _if_equal([number], [_argument(place), *_refuse_cut()])
    rules += _if_equal([_FCNTL[column]], [_argument(1), *_refuse_values((_F_SETOWN, _F_SETOWN_EX))])
    rules += _if_equal([_PRCTL[column]], [_argument(0), *_refuse_values((_SET_PDEATHSIG,))])
    rules += _if_equal(
        [_IOCTL[column]], [_argument(1), *_refuse_values((_TIOCSTI, _TIOCLINUX, _FIOSETOWN, _SIOCSPGRP))]
    )
    return b"".join([*rules, _op(_RETURN, _ALLOW)])


def _op(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("<HBBI", code, then, otherwise, value)


def _argument(index: int) -> bytes:
    """Loads the lower half of an argument, which is all that these calls look at."""
    return _op(_LOAD, 16 + 8 * index)


def _if_equal(values: Iterable[int], then: list[bytes]) -> list[bytes]:
    """`then` for a call of this number, after which the number is loaded no more: it must end in an allowance."""
    return [rule for value in values for rule in (_op(_EQUAL, value, 0, len(_closed(then))), *_closed(then))]


def _closed(rules: list[bytes]) -> list[bytes]:
    """A branch must not go on to the next comparison with an argument in the place of the number."""
    return rules if len(rules) == 1 else [*rules, _op(_RETURN, _ALLOW)]


def _unless_equal(value: int, then: list[bytes]) -> list[bytes]:
    return [_op(_EQUAL, value, len(then), 0), *then]


def _unless_one_of(values: tuple[int, ...]) -> list[bytes]:
    """Refuses unless the loaded argument is one of the values."""
    checks = [_op(_EQUAL, value, len(values) - place, 0) for place, value in enumerate(values)]
    return [*checks, _op(_RETURN, _ERROR | _EPERM)]


def _refuse_values(values: tuple[int, ...]) -> list[bytes]:
    return [rule for value in values for rule in (_op(_EQUAL, value, 0, 1), _op(_RETURN, _ERROR | _EPERM))]


def _refuse_cut() -> list[bytes]:
    """Refuses to cut a file that is not opened to be written: Landlock sees it from version 3 on only."""
    return [_op(_AND, _CUT | _ACCESS), *_refuse_values((_CUT, _CUT | _ACCESS))]
