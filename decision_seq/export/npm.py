"""Files of npm packages at pinned versions, whose hashes are checked before anything is read."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from decision_seq.errors import UserError
from decision_seq.files import cache_dir, workspace


@dataclass(frozen=True)
class Package:
    """One version of a package, and what is wanted of it."""

    name: str
    version: str
    sha512: str  # of the archive, base64: npm's integrity
    files: dict[str, str]  # path in the package -> name here

    @property
    def archive(self) -> str:
        """What `npm pack` calls the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    Package(
        "@mujoco/mujoco",
        "3.14.0",
        "WPUYidu4Fx8+uM4hQv80SOA0ifpWGrsNJguKs8JBV8SCTxjKQ2/rqsh880nUH0/Vwa8vuefghvCQkkoed3bkUg==",
        {"mujoco.js": "mujoco.js", "mujoco.wasm": "mujoco.wasm"},
    ),
    Package(
        "onnxruntime-web",
        "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        {
            "dist/ort.wasm.bundle.min.mjs": "ort.js",
            "dist/ort-wasm-simd-threaded.wasm": "ort.wasm",  # runs on one thread where asked to
        },
    ),
)


def npm_files(packages: Path | None = None) -> dict[str, bytes]:
    """name here -> content, of all of `PACKAGES`.

    Args:
        packages: folder of archives as `npm pack` makes them; by default a cache of the user's,
            which npm fills.

    Raises:
        UserError: an archive is missing, is another than the pinned one, or npm cannot fetch it.
    """
    folder = packages or cache_dir() / "npm"
    found: dict[str, bytes] = {}
    for package in PACKAGES:
        archive = folder / package.archive
        if not archive.is_file():
            if packages is not None:
                wanted = " ".join(f"{p.name}@{p.version}" for p in PACKAGES)
                raise UserError(f"{archive}: is missing; run `npm pack {wanted}` in {packages}")
            _fetch(package, archive)
        _check(package, archive)
        with tarfile.open(archive) as tar:
            for path, name in package.files.items():
                member = tar.extractfile(f"package/{path}")
                assert member is not None  # the hash says what is in it
                found[name] = member.read()
    return found


def _fetch(package: Package, archive: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "npm is not installed, which fetches MuJoCo and ONNX Runtime for browsers; install "
            "Node.js, or name a folder of their archives with --packages"
        )
    with workspace(archive) as folder:
        asked = f"{package.name}@{package.version}"
        command = [npm, "pack", asked, "--pack-destination", str(folder)]
        # without a network npm would try for a minute, and with --silent not say why it gave up
        command += ["--loglevel", "error", "--fetch-retries", "1"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        made = folder / package.archive
        if done.returncode or not made.is_file():
            said = " ".join(f"{done.stderr} {done.stdout}".split())[:200] or "no reason given"
            raise UserError(f"npm cannot fetch {asked} ({said}); try again with a network")
        _check(package, made)
        made.replace(archive)


def _check(package: Package, archive: Path) -> None:
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise UserError(
            f"{archive}: is not {package.name} {package.version} (its SHA-512 is {found}, not "
            f"{package.sha512}); remove it"
        )
