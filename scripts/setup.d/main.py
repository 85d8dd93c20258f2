"""Makes the folders that scripts/setup found missing or out of date; not meant to be run by hand."""

import argparse
import contextlib
import fcntl
import importlib
import signal
import sys

from wheels import SETUP, SetupError, stamp_of


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", nargs=3, action="append", metavar=("KIND", "NAME", "STAMP"), required=True)
    arguments = parser.parse_args()
    with locked():
        for kind in dict.fromkeys(kind for kind, _, _ in arguments.target):
            module = importlib.import_module(kind)
            targets = {name: stamp for group, name, stamp in arguments.target if group == kind}
            # Another run may have made them while this one waited for the lock.
            targets = {name: stamp for name, stamp in targets.items() if stamp_of(module.folder(name)) != stamp}
            if targets:
                module.make(targets)


@contextlib.contextmanager
def locked():
    """Waits until no other set-up runs. The system drops the lock when the process ends, however it ends."""
    SETUP.mkdir(exist_ok=True)
    with open(SETUP / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another scripts/setup …", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    # As an exception, so that what is half made is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (SetupError, OSError) as error:
        sys.exit(f"scripts/setup: {error}")
