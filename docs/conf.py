"""Settings of the documentation: `python -m sphinx -W --keep-going docs site/html`."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from numpy.typing import ArrayLike
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.util.typing import stringify_annotation

import halfway
from halfway import types

project = "halfway"
release = halfway.__version__
project_copyright = "the authors of halfway, Apache-2.0"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = "halfway"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["halfway.css"]
exclude_patterns = ["figures"]
smartquotes_action = "D"  # dashes only

nb_execution_mode = "off"  # notebooks are shown with the outputs that they are committed with
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"  # rendered by browsers themselves: no script, no network
myst_heading_anchors = 3  # so that pages can link to each other's headings

# The pages of the modules are written to docs/api/ from the list in docs/api.md.
autosummary_generate = True
templates_path = ["templates"]
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False

# Docstrings are written for readers of the source first. What they hold that reStructuredText takes
# for something else is settled here.
default_role = "name"
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_CODE = re.compile(r"(`[^`]*`)")
_ALIASES = {
    stringify_annotation(alias, "smart"): name
    for name, alias in (
        ("~numpy.typing.ArrayLike", ArrayLike),
        ("~halfway.types.LogitsFn", types.LogitsFn),
        ("~halfway.types.ApplyFn", types.ApplyFn),
        ("~halfway.types.LossFn", types.LossFn),
    )
}
_LONE_LETTER = re.compile(r"^(\s+\w+: )(\w)\.")


def _name(
    _role: str, rawtext: str, text: str, lineno: int, inliner: Any, *_: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Returns `text` of a docstring as a link where it names an object of ours, else as code."""
    if _NAME.fullmatch(text):
        return PyXRefRole()("py:obj", rawtext, text, lineno, inliner)
    return [nodes.literal(rawtext, text)], []


def _escape(_app: Any, what: str, _name: str, _obj: Any, _opts: Any, lines: list[str]):
    """Escapes |x|, which would be a substitution, and a lone "C.", which would be a list."""
    for index, line in enumerate(lines):
        parts = _CODE.split(line)
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[index] = _LONE_LETTER.sub(r"\1\\\2.", "".join(parts))
    if lines and what in ("attribute", "data", "property"):
        lines[0] = f":{lines[0]}"  # napoleon takes what precedes the first colon for the type


def _alias(_app: Any, _what: str, _name: str, _obj: Any, _opts: Any, arguments: Any, result: Any):
    """Writes aliases of types by their names."""
    for expanded, name in _ALIASES.items():
        arguments = arguments and arguments.replace(expanded, name)
        result = result and result.replace(expanded, name)
    return arguments, result


def _skip(_app: Any, what: str, name: str, obj: Any, _skip: bool, _opts: Any) -> bool | None:
    """Leaves out fields of a NamedTuple, which its class describes, and what others add."""
    is_field = type(obj).__name__ == "_tuplegetter"
    is_added = name == "replace" and getattr(obj, "__module__", "").startswith("flax")
    is_typing = isinstance(obj, type) and obj.__module__ in ("typing", "collections.abc")
    return True if is_field or is_added or is_typing else None


def _formula(translator: Any, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _displayed_formula(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Registers the above."""
    app.add_role("name", _name)
    app.add_html_math_renderer("mathml", (_formula, None), (_displayed_formula, None))
    app.connect("autodoc-process-docstring", _escape, priority=400)  # before napoleon's 500
    app.connect("autodoc-process-signature", _alias)
    app.connect("autodoc-skip-member", _skip)
