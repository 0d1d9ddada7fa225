# ruff: noqa: E501
"""Programs that try to get out of a sandbox. Each prints ESCAPED if it does.

`{secret}` is a file outside that holds "the secret", `{folder}` a folder outside that everybody may write to, `{port}` a
server on 127.0.0.1, `{name}` a server on an abstract Unix socket, `{path}` one on a Unix socket in the folder, `{pid}`
the process that started the sandbox.
"""

from __future__ import annotations

NETWORK = {
    "tcp": "import socket; socket.create_connection(('127.0.0.1', {port}), 3); print('ESCAPED')",
    "udp": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port})); print('ESCAPED')",
    "unix socket": "import socket; socket.socket(socket.AF_UNIX).connect({path!r}); print('ESCAPED')",
    "abstract unix socket": "import socket; socket.socket(socket.AF_UNIX).connect('\\0' + {name!r}); print('ESCAPED')",
    "dns": "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('192.0.2.1', 53)); print('ESCAPED')",
    "raw netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); print('ESCAPED')",
    "a datagram from a pair": "import socket; a, b = socket.socketpair(type=socket.SOCK_DGRAM); a.sendto(b'x', '\\0' + {name!r} + '-d'); print('ESCAPED')",
    "a server": "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print('ESCAPED')",
}

FILES = {
    "a secret": "print('ESCAPED' if open({secret!r}).read() else '')",
    "the home folder": "import os; print('ESCAPED' if os.listdir(os.path.dirname({secret!r})) else '')",
    "/etc/shadow": "print('ESCAPED' if open('/etc/shadow').read() else '')",
    "/etc/passwd": "print('ESCAPED' if open('/etc/passwd').read() else '')",
    "a symbolic link": "import os; os.symlink({secret!r}, 'link'); print('ESCAPED' if open('link').read() else '')",
    "a link as the next program": "import os; os.unlink('main.py'); os.symlink({secret!r}, 'main.py'); open('main.py', 'a').write('x'); print('ESCAPED')",
    "a hard link": "import os; os.link({secret!r}, 'link'); print('ESCAPED')",
    "up the tree": "print('ESCAPED' if open('../../../../../../..' + {secret!r}).read() else '')",
    "root of another process": "print('ESCAPED' if open('/proc/{pid}/root' + {secret!r}).read() else '')",
    "environment of another process": "print('ESCAPED' if open('/proc/{pid}/environ').read() else '')",
    "memory of another process": "print('ESCAPED' if open('/proc/{pid}/maps').read() else '')",
    "writing outside": "open({folder!r} + '/mark', 'w').write('x'); print('ESCAPED')",
    "appending to a file": "open({secret!r}, 'a').write('x'); print('ESCAPED')",
    "cutting a file": "import os; os.truncate({secret!r}, 1); print('ESCAPED')",
    "removing a file": "import os; os.unlink({folder!r} + '/victim'); print('ESCAPED')",
    "renaming a file": "import os; os.rename({folder!r} + '/victim', {folder!r} + '/other'); print('ESCAPED')",
    "a device": "import os, glob; os.open((glob.glob('/dev/vd*') + glob.glob('/dev/sd*') + ['/dev/kmsg'])[0], os.O_RDONLY); print('ESCAPED')",
    "shared memory": "open('/dev/shm/mark-{pid}', 'w').write('x'); print('ESCAPED')",
    "python's library": "import os; open(os.path.dirname(os.__file__) + '/mark-{pid}.py', 'w').write('x'); print('ESCAPED')",
}  # fmt: skip
# The strongest cannot see these files, and Landlock's filter refuses the calls; nothing else does.
CALLS_ON_FILES = {
    "the mode of a file": "import os; os.chmod({secret!r}, 0o777); print('ESCAPED')",
    "the owner of a file": "import os; os.chown({secret!r}, os.getuid(), os.getgid()); print('ESCAPED')",
    "the times of a file": "import os; os.utime({secret!r}, (1, 1)); print('ESCAPED')",
    "cutting a file that is opened to be read": "import os; os.open({secret!r}, os.O_RDONLY | os.O_TRUNC); print('ESCAPED')",
    "cutting a file that is opened for nothing": "import os; os.open({secret!r}, 3 | os.O_TRUNC); print('ESCAPED')",
    "an attribute of a file": "import os; os.setxattr({secret!r}, 'user.mark', b'x'); print('ESCAPED')",
}

PROCESSES = {
    "fork": "import os\nif os.fork() == 0: os._exit(0)\nprint('ESCAPED')",
    "subprocess": "import subprocess; subprocess.run(['/bin/true'], check=True); print('ESCAPED')",
    "spawn": "import os; os.posix_spawn('/bin/true', ['true'], {{}}); print('ESCAPED')",
    "fork bomb": "import os\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)\nprint('ESCAPED')",
    "a signal to the parent": "import os; os.kill(os.getppid(), 0); print('ESCAPED')",
    "a signal to the starter": "import os; os.kill({pid}, 0); print('ESCAPED')",
    "a signal to a thread": "import ctypes, os; n = {{'x86_64': 234, 'aarch64': 131}}[os.uname().machine]\n"
    "p = os.getppid()\nif ctypes.CDLL(None).syscall(n, p, p, 0) == 0: print('ESCAPED')",
    "a signal by way of a socket": "import fcntl, os, socket; a, b = socket.socketpair(); fcntl.fcntl(a, fcntl.F_SETOWN, os.getppid()); print('ESCAPED')",
    "the same by another call": "import fcntl, os, socket, struct; a, b = socket.socketpair(); fcntl.ioctl(a, 0x8901, struct.pack('i', os.getppid())); print('ESCAPED')",
    "limits of another process": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE); print('ESCAPED')",
    "a namespace of its own": "import os; os.unshare(os.CLONE_NEWUSER); print('ESCAPED')",
    "an own clone": "import ctypes, os; n = {{'x86_64': 56, 'aarch64': 220}}[os.uname().machine]\n"
    "pid = ctypes.CDLL(None).syscall(n, 17, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\nif pid > 0: print('ESCAPED')",
    "shared memory of System V": "import ctypes\nif ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0: print('ESCAPED')",
    "ptrace": "import ctypes\nif ctypes.CDLL(None).ptrace(0x4206, {pid}, 0, 0) == 0: print('ESCAPED')",  # it does not stop
    "memory as a file": "import os; os.memfd_create('x'); print('ESCAPED')",
}  # fmt: skip
# Refused by some means or other on every method: without rights of root, most need nothing else.
PRIVILEGES = {
    "mount": "import ctypes\nif ctypes.CDLL(None).mount(b'x', b'.', b'tmpfs', 0, None) == 0: print('ESCAPED')",
    "chroot": "import os; os.chroot('.'); print('ESCAPED')",
    "a device node": "import os; os.mknod('disk', 0o60600, os.makedev(8, 0)); print('ESCAPED')",
    "becoming root": "import os\nif os.getuid():\n    os.setuid(0); print('ESCAPED')\nos.setgroups([0]); print('ESCAPED')",
    "the host's name": "import socket; socket.sethostname('x'); print('ESCAPED')",
    "a descriptor of the sandbox": "import os\nfor n in range(3, 300):\n    try: os.fstat(n)\n    except OSError: continue\n    print('ESCAPED')",
    "the environment": "import os; print('ESCAPED' if 'VERST_TEST_SECRET' in str(os.environ) else '')",
    "memory bomb": "a = bytearray(3 << 30); print('ESCAPED')",
    "memory bomb of small pieces": "a = []\nwhile len(a) < 3000: a.append(bytearray(1 << 20))\nprint('ESCAPED')",
    "more file descriptors": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)); print('ESCAPED')",
    "more memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); print('ESCAPED')",
    "a huge file": "f = open('big', 'wb')\nfor _ in range(20): f.write(bytes(1 << 20)); f.flush()\nprint('ESCAPED')",
    "a huge sparse file": "import os; f = os.open('sparse', os.O_RDWR | os.O_CREAT); os.ftruncate(f, 1 << 40); print('ESCAPED')",
}  # fmt: skip
# 32-bit calls have other numbers: fork is 2. Then the old kind of 64-bit calls with 32-bit pointers.
MACHINE_CODE = """
import ctypes, mmap, os
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes([0xB8, 2, 0, 0, 0, 0xCD, 0x80, 0xC3]))
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
pid = call()
if pid == 0: os._exit(0)
if pid > 0: print('ESCAPED')
"""
X32 = "import ctypes\npid = ctypes.CDLL(None).syscall(0x40000000 + 57)\nif pid == 0: import os; os._exit(0)\nif pid > 0: print('ESCAPED')"

DISK = """
for n in range(10):
    with open(f'file-{n}', 'wb') as file:
        for _ in range(8): file.write(bytes(1 << 20))
print('ESCAPED')
"""

DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        null = os.open('/dev/null', os.O_RDWR)
        for n in (0, 1, 2): os.dup2(null, n)
        time.sleep(3)
        open({folder!r} + '/daemon', 'w').write('x')
    os._exit(0)
"""
