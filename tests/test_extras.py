"""A package that isn't there, or is broken, is named with the extra that it belongs to."""
from __future__ import annotations

import re

import pytest

from ebm.extras import extra


@pytest.mark.parametrize(("error", "said"), [
    (ModuleNotFoundError("no", name="scipy.integrate"), "scipy: not installed; likelihoods need pip install -e '.[evaluate]'"),
    (ImportError("no symbol", name="scipy"), "scipy: cannot be imported (no symbol); likelihoods need pip install -e "
                                             "'.[evaluate]'")])
def test_one_line_says_what_is_missing_and_how_to_get_it(error: ImportError, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"), extra("evaluate", "likelihoods"):
        raise error
