"""Is the slingshot for small data? The same training with 16 to 512 points, in float32, slung, fresh, and trained on.

More points than a network can memorize leave nothing to mend, and shrinking then throws away what was right: how much is
lost, and when it is back, is read off at the same shares of the steps as everywhere. The rule asks two things, after 10 %
more steps: whether there is a gain with the most points, and whether the gain with the fewest is larger than that (a ratio of
ratios, by seed).
"""

from collections.abc import Mapping
from typing import Any

from precisionlab.experiments.slingshot.arms import ARMS, Arm
from precisionlab.experiments.slingshot.ratios import loss_ratio
from precisionlab.experiments.slingshot.verdicts import ROLES, Answer, Question

__all__ = ["SIZED_ARMS", "SIZED_REACH", "SIZED_REGISTER", "size_questions", "size_sentence"]

SIZED_REACH = 0.5
"""How long these are trained on, a share of the steps before."""
SIZED_ARMS: dict[str, Arm] = {name: ARMS[name]._replace(reach=SIZED_REACH) for name in ROLES.values()}
"""The arms that are compared."""
SIZED_REGISTER = "native float32"
"""Where it is asked: no format plays a part in it."""


def size_questions(data: str, found: Mapping[int, Mapping[str, Any]]) -> list[Question]:
    """What the rule asks of the number of points.

    Args:
        data: the data set's name.
        found: by number of points, the arrays that `ratios` reads, of one register and `SIZED_ARMS`.

    Returns:
        Questions of the group (data, "16 to 512 points"); none for fewer than two numbers of points.
    """
    if len(found) < 2:
        return []
    few, many = min(found), max(found)
    small, large = (loss_ratio(found[points], [0], list(SIZED_ARMS), ROLES["essay"], "before") for points in (few, many))
    group = (data, f"{few} to {many} points")
    return [
        Question(
            group,
            "large",
            f"test loss slung / before with {many} points, after 10 % more steps",
            (("a gain at any size",), ("a gain for small data alone",)),
            large,
        ),
        Question(
            group,
            "small",
            f"that with {few} points / that with {many}",
            (("a gain for small data alone",), ("a gain at any size",)),
            small - large,
        ),
    ]


def size_sentence(data: str, answers: Mapping[tuple[str, str], Mapping[str, Answer]]) -> list[str]:
    """What follows for one data set, in words; nothing where the sizes were not measured.

    Args:
        data: the data set's name.
        answers: from `judge`.
    """
    for (name, points), of in answers.items():
        if name == data and "large" in of:
            many = points.split()[2]
            gain = {True: "is a gain", False: "is no gain", None: "is no decided gain"}[of["large"].smaller]
            less = {
                True: "fewer points gain more",
                False: "fewer points do not gain more",
                None: "whether fewer points gain more is undecided",
            }
            return [
                f"{data}, {points}: with {many} there {gain} after 10 % more steps ({of['large'].measured:.2f} of the test "
                f"loss before); {less[of['small'].smaller]} (ratio {of['small'].measured:.2f})."
            ]
    return []
