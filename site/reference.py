"""The reference: every public name with its arguments, from the comments beside them."""
import inspect

from fastcore.docments import docments

from mix_research.base import Mixer
from rooms import MODULES, SYMBOLS, anchor, definer, linked
from sources import hidden_toc, prose, write

EMPTY = inspect.Parameter.empty


def code(text): return f"```python\n{text}\n```\n"


def cell(text): return text.replace("|", "\\|")  # of a Markdown table


def annotation(anno):
    if anno is EMPTY or anno is None: return ""
    anno = getattr(anno, "__origin__", anno)
    text = anno if isinstance(anno, str) else getattr(anno, "__name__", str(anno))
    return "`" + text.strip("'") + "`"


def literal(value):
    "A default as it would be typed; what a dataclass makes is an empty dict."
    if repr(value) == "<factory>": return "{}"
    return getattr(value, "__name__", None) or repr(value) if callable(value) else repr(value)


def default(value):
    if value is EMPTY: return "*required*"
    return "" if value is None else f"`{literal(value)}`"


def returned(doc):
    "The sentence about what comes back."
    if not doc or not (doc.docment or doc.anno not in (EMPTY, "None")): return ""
    colon = ": " if doc.anno is not EMPTY and doc.docment else ""
    return f"Returns {annotation(doc.anno)}{colon}{prose(doc.docment)}\n"


def meaning(doc):
    "The comment on an argument; of an option that several commands share, what its type says."
    if doc.docment: return doc.docment
    said = [m["help"] for m in getattr(doc.anno, "__metadata__", ()) if "help" in m]
    return said[-1] if said else ""


def parameters(obj):
    "The table of arguments, and what comes back."
    docs = docments(obj, full=True, returns=True)
    result = docs.get("return")
    named = {k: v for k, v in docs.items() if k not in ("self", "cls", "return")}
    rows = [f"| `{k}` | {cell(annotation(v.anno))} | {cell(default(v.default))} | {cell(prose(meaning(v)))} |"
            for k, v in named.items()]
    table = "\n".join(["| argument | type | default | meaning |", "|:--|:--|:--|:--|", *rows]) + "\n" if rows else ""
    return f"{table}\n{returned(result)}"


def argument(p):
    "One argument of a signature."
    stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
    return stars + p.name + ("" if p.default is EMPTY else f"={literal(p.default)}")


def signature(obj, name):
    "How a thing is called, on one line where it fits."
    try: given = [p for p in inspect.signature(obj).parameters.values() if p.name not in ("self", "cls")]
    except (TypeError, ValueError): return name
    text = f"{name}({', '.join(map(argument, given))})"
    return text if len(text) < 88 else f"{name}(\n    " + ",\n    ".join(map(argument, given)) + ")"


# --- one name

def constant(name, value):
    "A value; of a kind of number, what it may be."
    if hasattr(value, "__metadata__"): return f"{annotation(value)}: {prose(value.__metadata__[0].words)}.\n"
    if not isinstance(value, (dict, tuple, list)): return code(f"{name} = {value!r}")
    text = ", ".join(map(str, value))
    what = " of names" if isinstance(value, dict) else ""
    return f"A {type(value).__name__}{what}: {prose(text if len(text) < 600 else text[:600] + ' ...')}\n"


def routine(name, obj): return f"{code(signature(obj, name))}\n{prose(inspect.getdoc(obj))}\n\n{parameters(obj)}"


def function_of(attribute):
    "The function behind a property, a class method or a static method."
    if isinstance(attribute, property): return attribute.fget
    return attribute.__func__ if isinstance(attribute, (classmethod, staticmethod)) else attribute


def documented(name, attribute):
    "Is this attribute of a class a public method of the library that says what it does?"
    f = function_of(attribute)
    if (name.startswith("_") and name != "__call__") or not inspect.isfunction(f): return False
    return f.__module__.startswith("mix_research") and bool(f.__doc__)


def method(cls, name, attribute):
    "A method or property, under its class."
    f, full = function_of(attribute), f"{cls.__name__}.{name}"
    called = "mixer" if issubclass(cls, Mixer) else cls.__name__.lower()
    use = full if isinstance(attribute, property) else signature(f, called if name == "__call__" else full)
    return f"\n### `{full}`\n\n{code(use)}\n{prose(inspect.getdoc(f))}\n\n{parameters(f)}"


def class_(name, cls, room):
    doc = vars(cls).get("__doc__") or ""
    if doc.startswith(f"{name}("): doc = ""  # what dataclass writes
    bases = [b.__name__ for b in cls.__mro__[1:] if b.__name__ in SYMBOLS and not b.__name__.startswith("_")]
    base = f"\nA kind of {linked(f'`{bases[0]}`', room)}.\n" if bases else ""
    methods = "".join(method(cls, k, v) for k, v in vars(cls).items() if documented(k, v))
    return f"{code(signature(cls, name))}\n{prose(doc)}\n{base}\n{parameters(cls)}{methods}"


def elsewhere(name, home):
    "A name that a module only passes on."
    return f"From [`{home.name}`](#{anchor(home.name, name)}).\n"


def symbol(room, name):
    "The reference of one public name."
    obj, home = getattr(room.module, name), definer(room, name)
    head = f"\n({anchor(room.name, name)})=\n## `{name}`\n\n"
    if home is not room: return head + elsewhere(name, home)
    if inspect.isclass(obj): return head + class_(name, obj, room.name)
    return head + (routine(name, obj) if inspect.isroutine(obj) else constant(name, obj))


def api():
    "Writes a page for every module, and their list."
    rows = []
    for room in MODULES.values():
        links = ", ".join(f"[`{name}`](#{anchor(room.name, name)})" for name in room.names)
        rows.append(f"[`{room.name}`]({room.name}.md)\n: {links}\n")
        top = f"{prose(room.says)} Explained in its [notebook](../nbs/{room.page})."
        symbols = "\n".join(symbol(room, name) for name in room.names)
        write(f"api/{room.name}.md", f"# mix_research.{room.name}\n\n{top}\n{symbols}")
    start = "# Reference\n\nEvery public name, from the comments beside its arguments.\n\n"
    write("api/index.md", start + "\n".join(rows) + hidden_toc(f"{name} <{name}>" for name in MODULES))
