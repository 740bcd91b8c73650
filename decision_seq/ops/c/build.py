"""Compile C files for this machine on first use and load them through ctypes.

A library lands in the user's cache under a hash of everything that decides its content, so a new
version, compiler or processor compiles anew and nothing is ever overwritten in use.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from decision_seq.errors import UserError
from decision_seq.files import cache_dir

HERE = Path(__file__).parent / "csrc"
# Not -ffast-math: it would break the rounding inside exp2_vec.
FLAGS = [
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
    "-w",
]
LIBRARIES = ["-lm"]
# Tried in turn: Apple's compiler has no OpenMP, some compilers do not know -march=native.
MACHINE_FLAGS = [["-march=native", "-fopenmp"], ["-march=native"], ["-fopenmp"], []]

POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
VIEW = [POINTER, LONG]  # data and row stride
SCAN = [*VIEW, *VIEW, POINTER, *VIEW, *VIEW, POINTER, *VIEW]  # u, dt, A, B, C, D, z
SIGNATURES: dict[str, list[Any]] = {
    "scan_block": [],
    "scan_forward": [*SCAN, *[POINTER] * 4, *[INT] * 7],
    "scan_backward": [POINTER, *SCAN, *[POINTER] * 8, *[INT] * 7],
    "conv_forward": [*VIEW, *[POINTER] * 3, *[INT] * 6],
    "conv_backward": [POINTER, *VIEW, *[POINTER] * 5, *[INT] * 6],
}


class KernelUnavailable(Exception):
    """The kernel cannot run here; the message is one clause saying why."""


class Library:
    """The C files of a folder as one library; headers are looked for there and beside this file.

    Args:
        name: of its file in the cache.
        folder: of the sources.
        signatures: function -> (what it returns, its arguments), as ctypes has them.
    """

    def __init__(self, name: str, folder: Path, signatures: dict[str, tuple[Any, list]]) -> None:
        self.name, self.folder, self.signatures = name, folder, signatures
        self.unusable = functools.cache(self._unusable)
        self.load = functools.cache(self._load)

    def _unusable(self) -> str:
        """Why it cannot run on this machine, or "" if it can. Compiles it if need be."""
        try:
            self.load()
        except KernelUnavailable as error:
            return str(error)
        return ""

    def _load(self) -> ctypes.CDLL:
        """The loaded library. Raises KernelUnavailable."""
        try:
            loaded = ctypes.CDLL(str(self.compiled()))
        except OSError as error:
            raise KernelUnavailable(f"it could not be built or loaded ({error})") from error
        for name, (result, arguments) in self.signatures.items():
            getattr(loaded, name).argtypes = arguments
            getattr(loaded, name).restype = result
        return loaded

    def compiled(self) -> Path:
        """The path of the compiled library, built now unless the cache has it."""
        compiler = find_compiler()
        version = run([*compiler, "--version"])
        sources = sorted(self.folder.glob("*.c"))
        headers = sorted({*self.folder.glob("*.h"), *HERE.glob("*.h")})
        code = [file.read_text() for file in (*headers, *sources)]
        identity = [*code, str(FLAGS), str(MACHINE_FLAGS), version.stdout, processor()]
        key = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
        folder = cache_folder()
        target = folder / f"{self.name}-{key}.so"
        if target.exists():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        # Built under another name and then renamed: another process sees all of it or nothing.
        with tempfile.TemporaryDirectory(dir=folder) as build:
            output = Path(build) / target.name
            for machine_flags in MACHINE_FLAGS:
                files = [f"-I{HERE}", *map(str, sources), *LIBRARIES, "-o", str(output)]
                result = run([*compiler, *machine_flags, *FLAGS, *files])
                if result.returncode == 0:
                    output.replace(target)
                    return target
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise KernelUnavailable(f"{compiler[0]} failed on it: {lines[-1]}")


def find_compiler() -> list[str]:
    """$CC, which may carry arguments, else cc or gcc."""
    wanted = shlex.split(os.environ.get("CC", ""))
    if wanted:
        if not shutil.which(wanted[0]):
            raise KernelUnavailable(f"the C compiler CC={wanted[0]} was not found")
        return wanted
    for name in ("cc", "gcc"):
        if shutil.which(name):
            return [name]
    raise KernelUnavailable("no C compiler (cc or gcc) was found")


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def cache_folder() -> Path:
    try:
        return cache_dir() / "kernels"
    except UserError as error:
        raise KernelUnavailable(str(error)) from None


def processor() -> str:
    """What tells processors apart for -march=native: a home folder may be shared by machines."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    first = cpuinfo.read_text().split("\n\n")[0].splitlines()
    fields = ("model name", "flags", "Features", "CPU part", "uarch", "isa")
    return "\n".join(line for line in first if line.startswith(fields))


SCAN_LIBRARY = Library("scan", HERE, {name: (INT, own) for name, own in SIGNATURES.items()})
