"""Coverage-guided fuzzing of everything that is read: ``python tests/storage/fuzz_atheris.py [TARGET] [-runs=20000]``.

Needs ``pip install atheris``. Without a target the first byte of each input chooses one; the others are the file.
Options are libFuzzer's, such as ``-max_total_time=300``; a folder is a corpus that it starts from and adds to.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path


def main() -> None:
    """Fuzz until libFuzzer ends the process; says at every 5,000 inputs how many each target had."""
    import atheris  # a tool of this script alone: tests are collected without it

    sys.path.insert(0, str(Path(__file__).parent))
    with atheris.instrument_imports(include=["superweight_ensembles", "yaml", "json"]):
        from fuzz_targets import TARGETS

    names, fed = tuple(TARGETS), Counter[str]()
    chosen = [argument for argument in sys.argv[1:] if argument in names]
    options = [argument for argument in sys.argv[1:] if argument not in names]

    def feed(data: bytes) -> None:
        if not data:
            return
        name = chosen[0] if chosen else names[data[0] % len(names)]
        fed[name] += 1
        if sum(fed.values()) % 5000 == 0:
            sys.stderr.write(f"inputs: {dict(fed)}\n")
        TARGETS[name][0](data if chosen else data[1:])

    corpus = Path(tempfile.mkdtemp(prefix="corpus"))
    for index, name in enumerate(names):
        if not chosen or name in chosen:
            start = b"" if chosen else bytes([index])
            (corpus / str(index)).write_bytes(start + TARGETS[name][1]())
    atheris.Setup([sys.argv[0], "-timeout=10", "-rss_limit_mb=6000", *options, str(corpus)], feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
