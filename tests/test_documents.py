"""What the documents say is printed is printed."""

from pathlib import Path

import jax
import pytest

from tests.documents import difference, outputs
from tests.what_is_simulated import PAGE, page

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["docs/your-training-loop.md"])
def test_a_document_shows_what_its_code_prints(name: str, tmp_path: Path) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        shown = list(outputs(ROOT / name, tmp_path))
    assert len(shown) > 5
    wrong = [f"{name}, line {block.first + 1}: {why}" for block in shown if (why := difference(block.said, block.printed))]
    assert not wrong, "\n".join(wrong)


def test_the_page_of_what_is_simulated_is_what_the_tables_say() -> None:
    assert PAGE.read_text() == page(), "python -m tests.what_is_simulated writes it anew"


def test_a_difference_is_seen() -> None:
    said = "layer: 85 % of 16,384 lost, 3.9e-03 each\n    (folded)"
    assert difference(said, "layer: 86 % of 16,384 lost, 3.9e-03 each (folded)") is None
    assert "prints" in str(difference(said, "layers: 85 % of 16,384 lost, 3.9e-03 each (folded)"))
    assert "16,384" in str(difference(said, "layer: 85 % of 20,384 lost, 3.9e-03 each (folded)"))
    assert "words" in str(difference(said, "layer: 85 % of 16,384 lost, 3.9e-03 each"))
