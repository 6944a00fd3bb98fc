"""Is this explanation any good? Measures of relevance, for any explainer.

An explainer is a function ``explain(model, x, target) -> relevance`` of the shape of ``x``: relprop's are
``lambda model, x, target: LRP(model).attribute(x, target)``. Nothing here knows how relevance came about.
"""

__all__: list[str] = []
