"""What a user's type checker sees of the client."""

import os
import subprocess
import sys
from pathlib import Path


def test_every_public_type_of_the_client_is_known(tmp_path: Path) -> None:
    checker = Path(sys.executable).with_name("basedpyright")

    # Elsewhere than in the checkout: there the package would not count as an installed one.
    told = subprocess.run(
        [
            str(checker),
            "--pythonpath",
            sys.executable,
            "--ignoreexternal",
            "--verifytypes",
            "ksi_client",
        ],
        cwd=tmp_path,
        # It asks the first python on the PATH where packages are, whatever --pythonpath says.
        env={**os.environ, "PATH": f"{checker.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "Type completeness score: 100%" in told.stdout, told.stdout
