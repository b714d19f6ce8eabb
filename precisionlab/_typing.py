"""Shape-annotated array types, or inert stand-ins where jaxtyping is not installed.

The annotations are documentation for readers and a runtime check in the tests; the library itself never needs jaxtyping.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt
else:
    try:
        from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt
    except ImportError:

        class _Inert:
            """Accepts any subscript and annotates nothing."""

            def __class_getitem__(cls, _item: Any) -> Any:
                return Any

        Array = PRNGKeyArray = Any
        Bool = Float = Int = PyTree = UInt = _Inert

__all__ = ["Array", "Bool", "Float", "Int", "PRNGKeyArray", "PyTree", "UInt"]
