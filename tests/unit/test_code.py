"""A function's code is what it reaches: all that can change its result is seen, and nothing else."""

import ast
import contextlib
import dis
import functools
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from axbake.calibration.pictures import decode_latents, draw_pictures, encode_pictures
from axbake.calibration.tars import calibrate_decoder, calibrate_encoder, calibrate_text_encoder
from axbake.graphs.export import export_onnx
from axbake.graphs.parity import measure_parity
from axbake.jobs import code, definitions, reading
from axbake.jobs.code import code_of, parameters_of, symbols_of
from axbake.jobs.speech import REPORTERS, SPEAKS
from axbake.jobs.values import encode
from axbake.networks.component import DECODER, ENCODER, as_files
from axbake.weights.importing import import_denoiser
from tests import loras
from tests.unit import jobs
from tests.unit.conftest import COLUMNS, tensors_of

ROOT = Path(__file__).parents[2]
RULES = "".join(path.read_text() for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")))
FUNCTIONS = sorted(set(re.findall(r'"(axbake\.[\w.]+)"', RULES)))
CACHES = (
    *(definitions.module_of, definitions.is_module, definitions.ancestors, definitions.is_heard),
    *(reading.reading_of, code._reach),
)


def forget():
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty directory in which packages are looked up."""
    monkeypatch.setattr(definitions, "ABOVE", tmp_path)
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def package(elsewhere):
    """A copy of the package, to edit."""
    shutil.copytree(ROOT / "axbake", elsewhere / "axbake", ignore=shutil.ignore_patterns("__pycache__"))
    return elsewhere / "axbake"


def codes(functions=FUNCTIONS):
    """code_of of each of *functions*, as the files are now."""
    forget()
    return {function: code_of(function) for function in functions}


def edit(path, old, new):
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, 1))


def changed(before):
    """Functions whose code differs from *before*."""
    now = codes(before)
    return {function for function, digests in before.items() if now[function] != digests}


# A small package: `write` makes its modules, `before | after` says whether an edit of them is seen ----------------------


def write(root, **modules):
    """Modules of a package axbake; `a__b` is a.b, and `a__init` the module of the package a."""
    (root / "axbake").mkdir(exist_ok=True)
    for name, text in modules.items():
        path = root.joinpath("axbake", *re.sub("__init$", "____init__", name).split("__", 1)).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        if path.name != "__init__.py" and path.parent.name != "axbake":
            (path.parent / "__init__.py").touch()
        path.write_text(textwrap.dedent(text))


def digests(root, **modules):
    write(root, **modules)
    forget()
    return code_of("axbake.job.run")


def is_seen(root, old, new, **modules):
    """Whether it is another code when *old* is replaced by *new* in the one module that has it."""
    before = digests(root, **modules)
    (name,) = (name for name, text in modules.items() if old in text)
    return digests(root, **modules | {name: modules[name].replace(old, new)}) != before


REAL_CHANGES = {
    "a constant": ("LIMIT = 3", "LIMIT = 4", "LIMIT = 3\ndef run():\n    return LIMIT"),
    "an operator": ("a + b", "a - b", "def run(a, b):\n    return a + b"),
    "a default": ("a=1", "a=2", "def run(a=1):\n    return a"),
    "a default that is a name": ("TEN = 10", "TEN = 11", "TEN = 10\ndef run(*, a=TEN):\n    return a"),
    "a parameter's kind": ("(a, b)", "(a, *, b)", "def run(a, b):\n    return a, b"),
    "a helper": ("return 1", "return 2", "def run():\n    return helper()\ndef helper():\n    return 1"),
    "a helper's helper": (
        "return 1",
        "return 2",
        "def run():\n    return one()\ndef one():\n    return two()\ndef two():\n    return 1",
    ),
    "a method": ("return 1", "return 2", "class K:\n    def far(self):\n        return 1\ndef run():\n    K()"),
    "a base": (
        "return 1",
        "return 2",
        "class A:\n    def f(self):\n        return 1\nclass B(A): ...\ndef run():\n    B()",
    ),
    "a decorator": (
        "f() + 1",
        "f() + 2",
        "def more(f):\n    return lambda: f() + 1\n@more\ndef run():\n    return 0",
    ),
    "which decorator": ("@cache", "@lru_cache(2)", "from functools import cache, lru_cache\n@cache\ndef run(): ..."),
    "an entry": ("'b': 2", "'b': 3", "TABLE = {'a': 1, 'b': 2}\ndef run(name):\n    return TABLE[name]"),
    "a function in a table": (
        "return 1",
        "return 2",
        "def f():\n    return 1\nTABLE = {'f': f}\ndef run(name):\n    return TABLE[name]()",
    ),
    "an added entry": ("|= {1: 2}", "|= {1: 3}", "TABLE = {}\nTABLE |= {1: 2}\ndef run():\n    return TABLE"),
    "an entry set afterwards": ("] = 2", "] = 3", "TABLE = {}\nTABLE['a'] = 2\ndef run():\n    return TABLE"),
    "a loop that fills": (
        "range(3)",
        "range(4)",
        "TABLE = {}\nfor n in range(3):\n    TABLE[n] = n\ndef run():\n    return TABLE",
    ),
    "a call when imported": ("fork(1)", "fork(2)", "import os\nos.fork(1)\ndef run(): ..."),
    "in a lambda": ("return 1", "return 2", "def f():\n    return 1\ndef run():\n    return lambda: f()"),
    "in a comprehension": ("A = 1", "A = 2", "A = 1\ndef run(some):\n    return [one for one in some if one > A]"),
    "in an f-string": ("A = 1", "A = 2", "A = 1\ndef run():\n    return f'{A:>3}'"),
    "in a format": ("A = 1", "A = 2", "A = 1\ndef run(x):\n    return f'{x:{A}}'"),
    "by partial": (
        "return a",
        "return -a",
        "from functools import partial\ndef f(a):\n    return a\ndef run():\n    return partial(f, 1)",
    ),
    "a text of a result": (
        "against torch",
        "and torch",
        "import json\ndef run(path):\n    path.write_text(json.dumps({'compared': 'ONNX against torch'}))",
    ),
    "a branch of an if": (
        "X = 1",
        "X = 3",
        "import os\nif os.name:\n    X = 1\nelse:\n    X = 2\ndef run():\n    return X",
    ),
    "a name of several": ("1, 2", "1, 3", "A, B = 1, 2\ndef run():\n    return A"),
    "a field's order": (
        "a: int\n    b: int",
        "b: int\n    a: int",
        "from dataclasses import dataclass\n@dataclass\nclass K:\n    a: int\n    b: int\ndef run():\n    return K(1, 2)",
    ),
    "a field's default": ("int = 1", "int = 2", "class K:\n    a: int = 1\ndef run():\n    return K()"),
    "a field that is none": (
        "ClassVar[int]",
        "int",
        "from typing import ClassVar\nclass K:\n    a: ClassVar[int] = 1\ndef run():\n    return K()",
    ),
    "an imported module": ("import math", "import cmath as math", "import math\ndef run():\n    return math.sqrt(2)"),
    "an imported name": (
        "from math import sin as f",
        "from math import cos as f",
        "from math import sin as f\ndef run():\n    return f(2)",
    ),
    "a condition of an error": ("> 3", "> 4", "def run(a):\n    if a > 3:\n        raise ValueError('too large')"),
    "an error's class": ("ValueError", "KeyError", "def run(a):\n    raise ValueError('too large')"),
    "a caught class": (
        "OSError",
        "KeyError",
        "def run(f):\n    try:\n        f()\n    except OSError:\n        return 1",
    ),
    "an asserted condition": ("> 3", "> 4", "def run(a):\n    assert a > 3, 'too large'"),
    "an exit status": ("(3)", "(4)", "def run():\n    raise SystemExit(3)"),
    "a generator's value": ("(3)", "(4)", "def run():\n    raise StopIteration(3)"),
    "a docstring that is read": (
        '"""Does it."""',
        '"""Does that."""',
        '"""Does it."""\ndef run():\n    return __doc__',
    ),
    "a global that is set": (
        "COUNT = 0",
        "COUNT = 1",
        "COUNT = 0\ndef run():\n    global COUNT\n    COUNT += 1",
    ),
    "a match": ("case 1:", "case 2:", "def run(a):\n    match a:\n        case 1:\n            return a"),
    "an argument's name": ("steps=", "times=", "def run(f):\n    return f(steps=1)"),
    "an async function": ("return 1", "return 2", "async def f():\n    return 1\ndef run():\n    return f"),
    "order of statements": ("f()\n    g()", "g()\n    f()", "def run(f, g):\n    f()\n    g()"),
    "a function defined twice": (
        "def f():\n    return 1\ndef f():\n    return 2",
        "def f():\n    return 2\ndef f():\n    return 1",
        "def f():\n    return 1\ndef f():\n    return 2\ndef run():\n    return f()",
    ),
    "a rebound name": (
        "A = 1\nB = A\nA = 2",
        "A = 1\nA = 2\nB = A",
        "A = 1\nB = A\nA = 2\ndef run():\n    return A, B",
    ),
}


@pytest.mark.parametrize("name", REAL_CHANGES)
def test_what_can_change_a_result_is_seen(name, elsewhere):
    old, new, text = REAL_CHANGES[name]

    assert is_seen(elsewhere, old, new, job=text)


OTHER_MODULES = {
    "a function": ("from axbake.other import f\ndef run():\n    return f()", {}),
    "a function under another name": ("from axbake.other import f as g\ndef run():\n    return g()", {}),
    "a module's function": ("from axbake import other\ndef run():\n    return other.f()", {}),
    "a module under another name": ("import axbake.other as o\ndef run():\n    return o.f()", {}),
    "a whole path": ("import axbake.other\ndef run():\n    return axbake.other.f()", {}),
    "a relative import": ("from .other import f\ndef run():\n    return f()", {}),
    "a relative module": ("from . import other\ndef run():\n    return other.f()", {}),
    "an import within": ("def run():\n    from axbake.other import f\n    return f()", {}),
    "a module imported within": ("def run():\n    from axbake import other\n    return other.f()", {}),
    "an import within a class": ("class K:\n    from axbake.other import f\ndef run():\n    return K.f()", {}),
    "an import that may fail": (
        "try:\n    from axbake.other import f\nexcept ImportError:\n    f = None\ndef run():\n    return f()",
        {},
    ),
    "a module whose import may fail": (
        "try:\n    from axbake import other\nexcept ImportError:\n    other = None\ndef run():\n    return other.f()",
        {},
    ),
    "a module handed on": ("from axbake import other\ndef run(name):\n    return getattr(other, name)()", {}),
    "a base": ("from axbake.other import K\nclass L(K): ...\ndef run():\n    return L()", {}),
    "a method of an instance": ("from axbake.other import K\ndef run():\n    return K().g()", {}),
    "through a package": (
        "from axbake.more import f\ndef run():\n    return f()",
        {"more__init": "from axbake.other import f\n__all__ = ['f']"},
    ),
    "through a package's module": (
        "from axbake import more\ndef run():\n    return more.f()",
        {"more__init": "from axbake.other import f"},
    ),
    "through two packages": (
        "from axbake.more import f\ndef run():\n    return f()",
        {"more__init": "from .inner import g as f", "more__inner": "from ..other import f as g"},
    ),
    "a module that a package hands on": (
        "from axbake.more import o\ndef run():\n    return o.f()",
        {"more__init": "from axbake import other as o"},
    ),
    "a table in another module": (
        "from axbake.table import TABLE\ndef run(name):\n    return TABLE[name]()",
        {"table": "from axbake import other\nTABLE = {'f': other.f}"},
    ),
    "a decorator": ("from axbake.other import f\n@f\ndef run():\n    return 1", {}),
    "a default": ("from axbake.other import f\ndef run(a=f()):\n    return a", {}),
    "what an error is made of and caught": (
        "from axbake.other import f\nclass E(Exception):\n    def __init__(self):\n        self.a = f()\ndef run():\n    raise E",
        {},
    ),
    "on import": ("import axbake.other\ndef run():\n    return 1", {}),
}


@pytest.mark.parametrize("name", OTHER_MODULES)
def test_a_change_in_another_module_is_seen(name, elsewhere):
    text, more = OTHER_MODULES[name]
    other = "def f(*_):\n    return 1\nclass K:\n    def g(self):\n        return 1"
    other += "\nprint(f())" if name == "on import" else ""

    before = digests(elsewhere, job=text, other=other, **more)
    after = digests(elsewhere, job=text, other=other.replace("return 1", "return 2"), **more)

    assert after["axbake.other"] != before["axbake.other"]
    assert {module for module in after if after[module] != before[module]} == {"axbake.other"}


NO_CHANGES = {
    "a comment": ("    return 1", "    # One.\n    return 1", "def run():\n    return 1"),
    "a docstring": ('"""A."""', '"""B."""', '"""A."""\ndef run():\n    """A."""\n    return 1'),
    "no docstring": ('    """A."""\n', "", 'def run():\n    """A."""\n    return 1'),
    "a class's docstring": ('"""A."""', '"""B."""', 'class K:\n    """A."""\ndef run():\n    return K'),
    "layout": ("[1, 2]", "[\n    1,\n    2,\n]", "def run():\n    return [1, 2]"),
    "quotes": ("'a'", '"a"', "def run():\n    return 'a'"),
    "a text in pieces": ("'ab'", "'a' 'b'", "def run():\n    return 'ab'"),
    "an f-string in pieces": ("f'ab{x}cd'", "'a' f'b{x}' 'c' f'd'", "def run(x):\n    return f'ab{x}cd'"),
    "an annotation": ("a: int", "a: float", "def run(a: int) -> int:\n    return a"),
    "a return's annotation": ("-> int", "-> float", "def run(a: int) -> int:\n    return a"),
    "a variable's annotation": ("a: int", "a: float", "def run():\n    a: int = 1\n    return a"),
    "a field's annotation": ("a: int", "a: float", "class K:\n    a: int = 1\ndef run():\n    return K()"),
    "an annotation's import": (
        "import Path",
        "import PurePath as Path",
        "from pathlib import Path\ndef run(a: Path): ...",
    ),
    "a type checker's import": (
        "import Path",
        "import PurePath",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pathlib import Path\ndef run(): ...",
    ),
    "another function": ("return 2", "return 3", "def run():\n    return 1\ndef other():\n    return 2"),
    "another constant": ("A = 1", "A = 2", "A = 1\ndef run():\n    return 1"),
    "order of functions": (
        "def f():\n    return 1\ndef run():\n    return f()",
        "def run():\n    return f()\ndef f():\n    return 1",
        "def f():\n    return 1\ndef run():\n    return f()",
    ),
    "a local of the same name": ("A = 1", "A = 2", "A = 1\ndef run(A):\n    return A"),
    "a variable of the same name": (
        "def f():\n    return 1",
        "def f():\n    return 2",
        "def f():\n    return 1\ndef run(x):\n    f = x\n    f()",
    ),
    "a comprehension's variable": ("A = 1", "A = 2", "A = 1\ndef run(some):\n    return [A for A in some]"),
    "an error's text": ("too large", "too big", "def run(a):\n    if a:\n        raise ValueError(f'{a}: too large')"),
    "how an error's text is made": (
        "{len(a)}",
        "{shown(a)}",
        "def shown(a): ...\ndef run(a):\n    if a:\n        raise ValueError(f'{len(a)}')",
    ),
    "what only an error's text calls": (
        "return 1",
        "return 2",
        "def shown(a):\n    return 1\ndef run(a):\n    raise ValueError(f'{shown(a)}') from a",
    ),
    "another package's error": (
        "bad",
        "worse",
        "import argparse\ndef run():\n    raise argparse.ArgumentTypeError('bad')",
    ),
    "an assertion's text": ("too large", "too big", "def run(a):\n    assert a > 3, f'{a}: too large'"),
    "a log line": (
        "took",
        "lasted",
        "import logging\nlogger = logging.getLogger(__name__)\ndef run(a):\n    logger.info('%s took', a)\n    return a",
    ),
    "no log line": (
        "    logging.warning('hm')\n",
        "",
        "import logging\ndef run(a):\n    logging.warning('hm')\n    return a",
    ),
    "a warning": ("hm", "oh", "import warnings\ndef run(a):\n    warnings.warn('hm', stacklevel=2)"),
    "texts that are gathered for an error": (
        "too large",
        "too big",
        """
        def run(some):
            faults = [f"{one}: too large" for one in some if one > 3]
            faults += ["none"] if not some else []
            for one in some:
                if one < 0:
                    faults.append(f"{one}: too small, not too large")
            if faults:
                more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
                raise ValueError("; ".join(faults[:3]) + more)
        """,
    ),
    "a text for an error": (
        "a file",
        "any file",
        """
        def run(place, kinds):
            names = {1: "a file", 2: "a folder"}
            what = names.get(place, "neither a file")
            parts = " and ".join(kinds) or "no kinds"
            if place > 3:
                raise ValueError(f"{what}: {parts}")
        """,
    ),
    "an error within an error": (
        "is bad",
        "is wrong",
        """
        def run(f):
            try:
                f()
                raise KeyError("is bad")
            except (OSError, KeyError) as error:
                why = str(error)
                raise ValueError(f"{error!r}: {why}") from error
        """,
    ),
    "an error that a function within makes": (
        "no header",
        "without header",
        """
        def run(path):
            def refusal(why):
                return ValueError(f"{path}: {why}")
            if not path:
                raise refusal("no header")
            try:
                path.read()
            except OSError as error:
                raise refusal(f"no header: {error}") from None
        """,
    ),
    "an error that another function makes": (
        "no header",
        "without header",
        """
        def refusal(path):
            return ValueError(f"{path}: no header") if path else KeyError(f"{path}: no header")
        def run(path):
            if not path:
                raise refusal(path)
        """,
    ),
    "an error kept for later": (
        "too late",
        "late",
        "def run(a):\n    error = ValueError('too late')\n    if a:\n        raise error",
    ),
}


@pytest.mark.parametrize("name", NO_CHANGES)
def test_what_cannot_change_a_result_is_not_seen(name, elsewhere):
    old, new, text = NO_CHANGES[name]

    assert not is_seen(elsewhere, old, new, job=text)


#: Texts near those above, each in a way in which it may get into a result.
TEXTS_THAT_COUNT = {
    "written by who catches it": """
        def run(path, f):
            try:
                check(path)
            except ValueError as error:
                path.write_text(str(error))
        def check(path):
            raise ValueError("a word")
        """,
    "of a class that derives from the caught one": """
        class E(ValueError): ...
        def run(path, f):
            try:
                check(path)
            except (KeyError, Exception) as error:
                path.write_text(f"{error}")
        def check(path):
            raise E("a word")
        """,
    "caught by a constant's classes": """
        BAD = (ValueError, KeyError)
        def run(path, f):
            try:
                check(path)
            except (OSError, *BAD) as error:
                path.write_text(f"{error}")
        def check(path):
            raise KeyError("a word")
        """,
    "handed on by another error": """
        def run(path):
            try:
                check(path)
            except ValueError as error:
                return {"error": error.args[0]}
        def check(path):
            try:
                path.read()
                raise KeyError("a word")
            except KeyError as error:
                raise ValueError(str(error)) from error
        """,
    "asserted, and caught": """
        def run(path):
            try:
                assert path, "a word"
            except Exception as error:
                return {"error": error.args[0]}
        """,
    "caught when a context ends": """
        class Keep:
            def __enter__(self): ...
            def __exit__(self, kind, error, trace):
                self.why = str(error)
        def run(path):
            with Keep():
                raise ValueError("a word")
        """,
    "looked up by sys.exc_info": """
        import sys
        def run(path):
            try:
                raise ValueError("a word")
            except ValueError:
                return sys.exc_info()[1].args
        """,
    "asked of a task": """
        def check():
            raise ValueError("a word")
        def run(pool):
            return str(pool.submit(check).exception())
        """,
    "gathered and caught": """
        def run(path):
            try:
                check(path)
            except ValueError as error:
                path.write_text(str(error))
        def check(path):
            faults = ["a word"] if path else []
            if faults:
                raise ValueError("; ".join(faults))
        """,
    "of an error that is not raised": """
        def run(path):
            path.write_text(str(ValueError("a word")))
        """,
    "of an error that a function makes for another use": """
        def refusal(path):
            return ValueError(f"{path}: a word")
        def run(path):
            error = refusal(path)
            path.write_text(str(error))
        """,
    "of an error that a function within makes for another use": """
        def run(path):
            def refusal(why):
                return ValueError(f"{why}: a word")
            path.write_text(str(refusal("x")))
        """,
    "that a function within looks into": """
        def run(path):
            def refusal(why):
                return ValueError(why) if "word" in why else KeyError(why)
            raise refusal("a word")
        """,
    "that a method makes": """
        class K:
            def refusal(self):
                return ValueError("a word")
        def run(path):
            path.write_text(str(K().refusal()))
        """,
    "gathered and returned": """
        def run(path):
            faults = []
            faults.append("a word")
            if faults:
                raise ValueError(faults)
            return faults
        """,
    "gathered in a list that others have": """
        def run(path, found):
            faults = found
            faults.append("a word")
            if faults:
                raise ValueError(faults)
        """,
    "gathered in an argument": """
        def run(faults):
            faults.append("a word")
            if faults:
                raise ValueError(faults)
        """,
    "gathered in a constant": """
        FAULTS = []
        def run(path):
            FAULTS.append("a word")
            if FAULTS:
                raise ValueError(FAULTS)
        """,
    "gathered by a global name": """
        FAULTS = []
        def run(path):
            global FAULTS
            FAULTS = ["a word"]
            if FAULTS:
                raise ValueError(FAULTS)
        """,
    "that decides what is gathered": """
        def run(names):
            faults = [name for name in names if name.endswith("a word")]
            if faults:
                raise ValueError(faults)
        """,
    "whose length is asked": """
        def run(names):
            fault = f"{names}a word"
            if len(fault) > 80:
                raise ValueError(fault)
        """,
    "in a list whose length is asked, letter by letter": """
        def run(names):
            while names:
                faults += "a word"
                faults = []
                if len(faults) > 3:
                    raise ValueError(faults)
        """,
    "that is compared": """
        def run(names):
            fault = "a word"
            if fault == names:
                raise ValueError(fault)
        """,
    "of which it is asked whether it is there, cut": """
        def run(names):
            fault = "a word"[6:]
            if fault:
                raise ValueError(fault)
        """,
    "that others are made of": """
        def run(path):
            fault = "a word"
            text = fault + "."
            if fault:
                raise ValueError(fault)
            path.write_text(text)
        """,
    "bound in passing": """
        def run(path):
            fault = (text := "a word")
            path.write_text(text)
            raise ValueError(fault)
        """,
    "of a class within": """
        def run(path):
            class K:
                title = "a word"
            return K
        """,
    "captured by a function within": """
        def run(path):
            fault = "a word"
            def show():
                return fault
            if path:
                raise ValueError(fault)
            return show
        """,
    "logged as a program's output": """
        import logging
        log = logging.getLogger("axbake.other")
        def run(path):
            log.info("a word")
        """,
    "logged by what only looks like a logger": """
        import logging
        logger = logging.getLogger(__name__)
        def run(logger):
            logger.info("a word")
        """,
    "logged with a side effect": """
        import logging
        logger = logging.getLogger(__name__)
        def run(path):
            logger.info("%s", name := "a word")
            return name
        """,
    "printed": """
        def run(path):
            print("a word", file=path)
        """,
    "given to a class of another package": """
        from elsewhere import Error
        def run(path):
            return Error("a word")
        """,
    "of an exit": """
        def run(path):
            raise SystemExit("a word")
        """,
    "raised by a name that may be anything": """
        def run(path, kind):
            raise kind("a word")
        """,
    "raised by a function": """
        def refusal(why):
            return KeyError(why) if "word" in why else ValueError(why)
        def run(path):
            raise refusal("a word")
        """,
}


@pytest.mark.parametrize("name", TEXTS_THAT_COUNT)
def test_a_text_that_may_get_into_a_result_is_seen(name, elsewhere):
    assert is_seen(elsewhere, "a word", "a term", job=TEXTS_THAT_COUNT[name])


PROGRESS = {
    "job": """
        from axbake.runtime.progress import SECONDS, progress
        class Writer:
            def __init__(self, count):
                self.tell = progress("writing")
            def write(self, number):
                self.tell(number, 3)
        def run(steps):
            tell = progress("step")
            for step in steps:
                tell(step, len(steps))
            return observe(progress("observing"))
        def observe(tell):
            tell(1, "counted")
            return Writer(3)
        """,
    "runtime__progress": "SECONDS = 5\ndef progress(what):\n    return lambda done, total: print(what, SECONDS)",
}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *(("SECONDS = 5", "SECONDS = 6"), ("print(what", "print(total"), ('progress("step")', 'progress("steps")')),
        *(
            ("tell(step, len(steps))", "tell(step + 1, 4)"),
            ('("writing")', '("copying")'),
            ("number, 3)", "3, number)"),
        ),
        ('progress("observing")', 'progress("seeing")'),
    ],
)
def test_progress_only_speaks(old, new, elsewhere):
    assert SPEAKS == ("axbake.runtime.progress",)
    assert not is_seen(elsewhere, old, new, **PROGRESS)
    assert "axbake.runtime.progress" not in symbols_of("axbake.job.run")


@pytest.mark.parametrize(
    ("old", "new"),
    [('tell(1, "counted")', 'tell(2, "counted")'), ("for step in steps", "for step in steps[1:]"), ("(step)", "(1)")],
)
def test_a_name_that_is_progress_elsewhere_and_work_beside_it_count(old, new, elsewhere):
    work = PROGRESS["job"].replace("len(steps))", "len(steps))\n                self_made(step)")

    assert is_seen(elsewhere, old, new, **PROGRESS | {"job": work})


def test_a_name_that_is_sometimes_progress_counts(elsewhere):
    job = """
        from axbake.runtime.progress import progress
        def run(step, other):
            tell = progress("step")
            if other:
                tell = other
            tell(step, 3)
        """

    assert is_seen(elsewhere, "step, 3", "step, 4", **PROGRESS | {"job": job})


def test_a_package_that_hands_on_does_not_bring_all_that_it_has(elsewhere):
    digests(
        elsewhere,
        job="from axbake.many import one\ndef run():\n    return one()",
        many__init="from axbake.many.first import one\nfrom axbake.many.second import two\nBOTH = (one, two)",
        many__first="def one(): ...",
        many__second="def two(): ...",
    )

    assert symbols_of("axbake.job.run") == {"axbake.job": ("run",), "axbake.many.first": ("one",)}


def test_statements_that_run_when_a_module_is_imported_count_with_every_import(elsewhere):
    digests(
        elsewhere,
        job="from axbake.many.first import one\ndef run():\n    return one()",
        many__init="import sys\nsys.path.append('x')",
        many__first="from axbake.second import two\ndef one(): ...\ndef other():\n    return two",
        second="import os\ndef two(): ...\ndef _after(): ...\nos.register_at_fork(after_in_child=_after)",
    )

    assert symbols_of("axbake.job.run") == {
        "axbake.job": ("run",),
        "axbake.many": ("<module>",),
        "axbake.many.first": ("one",),
        "axbake.second": ("<module>", "_after"),
    }


def test_what_runs_when_a_module_is_a_program_counts_where_something_of_it_is_reached(elsewhere):
    modules = {
        "job": "from axbake.program import start\nimport axbake.idle\ndef run():\n    return start()",
        "program": "def start(): ...\ndef main(): ...\nif __name__ == '__main__':\n    main()",
        "idle": "def main(): ...\nif __name__ == '__main__':\n    main()",
    }
    digests(elsewhere, **modules)

    assert symbols_of("axbake.job.run") == {"axbake.job": ("run",), "axbake.program": ("main", "start")}


def test_a_module_and_several_functions_are_reached_together(elsewhere):
    digests(
        elsewhere,
        job="from axbake import other\ndef run(): ...\ndef walk():\n    return other.f()",
        other="def f(): ...\ndef g(): ...",
    )

    assert symbols_of("axbake.job.walk", "axbake.job.run") == {"axbake.job": ("run", "walk"), "axbake.other": ("f",)}
    assert symbols_of("axbake.other") == {"axbake.other": ("f", "g")}
    assert code_of("axbake.job.run", "axbake.job.walk") == code_of("axbake.job.walk", "axbake.job.run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from axbake.other import *\ndef run(): ...", "axbake.job: from axbake.other import *: cannot be followed"),
        (
            "from axbake.other import g\ndef run():\n    return g()",
            "axbake.other: does not define g, which is imported",
        ),
        ("from axbake.none import g\ndef run():\n    return g()", "axbake.none: no such module, but g is imported"),
        ("def run(a):\n    return eval(a)", "axbake.job: axbake cannot follow how eval finds code"),
        (
            "class K: ...\ndef run():\n    return K.__subclasses__()",
            "axbake.job: axbake cannot follow how __subclasses__ finds code",
        ),
        (
            "import typing\ndef run(f):\n    return typing.get_type_hints(f)",
            "axbake.job: axbake cannot follow how get_type_hints finds code",
        ),
        (
            "class K:\n    def __init_subclass__(cls): ...\ndef run():\n    return K",
            "axbake.job: axbake cannot follow how __init_subclass__ finds",
        ),
        ("def walk(): ...", "axbake.job.run: no such definition; wanted one of axbake with its module"),
    ],
)
def test_what_cannot_be_followed_is_an_error(text, message, elsewhere):
    with pytest.raises(ValueError) as caught:
        digests(elsewhere, job=text, other="def f(): ...")

    assert message in str(caught.value)


def test_parameters_are_read_in_their_order(elsewhere):
    write(
        elsewhere,
        job="from axbake.other import f as run\nA = 1",
        other="def f(a, /, b, c=1, *more, d, e=(2), **rest): ...",
    )

    assert parameters_of("axbake.job.run") == ("a", "b", "c", "d", "e")
    with pytest.raises(ValueError, match=r"axbake\.job\.A: not a function"):
        parameters_of("axbake.job.A")


def test_parameters_are_those_of_the_function():
    assert parameters_of("axbake.graphs.export.export_onnx") == (
        *("weights", "build", "piece", "columns", "graph", "tensors"),
    )


# The package itself ------------------------------------------------------------------------------------------------------


def test_a_file_for_a_new_family_changes_nothing_of_the_others(package):
    before = codes()

    shutil.copy(package / "families" / "sd2.py", package / "families" / "sdxl.py")
    edit(package / "families" / "sdxl.py", 'name="sd2"', 'name="sdxl"')

    assert changed(before) == set()


def test_a_word_in_the_error_about_pyaxengine_changes_nothing(package):
    before = codes()

    edit(package / "runtime" / "session.py", "but pyaxengine cannot be imported", "but pyaxengine is not installed")

    assert changed(before) == set()


MERGES = {"axbake.checkpoints.conversion.convert_checkpoint"}


def test_a_word_in_any_error_of_merges_changes_no_job_but_that_which_merges(package):
    path = package / "checkpoints" / "merging.py"
    text = path.read_text()
    raises = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Raise)]
    parts = [part for node in raises if '"' in (part := ast.get_source_segment(text, node) or "")]
    before = codes()

    for part in parts:
        path.write_text(text.replace(part, part.replace('"', '"Sorry: ', 1)))
        assert path.read_text() != text
        assert changed(before) <= MERGES, part
    assert len(parts) == 3

    path.write_text(text.replace("{place} says {kind}", "{place}: {kind}"))
    assert path.read_text() != text
    assert changed(before) <= MERGES


def test_a_refusals_sentence_changes_nothing(package):
    before = codes()

    edit(package / "families" / "others.py", "It is a rectified-flow transformer", "It is a diffusion transformer")
    edit(package / "families" / "others.py", "It guides a checkpoint", "It steers a checkpoint")

    assert changed(before) == set()


def test_how_often_progress_is_printed_changes_nothing(package):
    before = codes()

    edit(package / "runtime" / "progress.py", "SECONDS = 5", "SECONDS = 7")

    assert changed(before) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "function"),
    [
        ("networks/modules.py", "MASKED = -100.0", "MASKED = -99.0", "axbake.families.sd1.FAMILY"),
        ("networks/modules.py", "return sample\n", "return -sample\n", "axbake.families.sd1.FAMILY"),
        ("graphs/parity.py", "against torch, float32", "and torch, float32", "axbake.graphs.parity.measure_parity"),
        ("checkpoints/writing.py", "% 8)", "% 16)", "axbake.weights.importing.import_denoiser"),
        ("runtime/noise.py", "TWO_PI = ", "TWO_PI = 1 + ", "axbake.calibration.trajectories.record_trajectories"),
        ("runtime/tokenizer.py", "</w>", "</v>", "axbake.calibration.tars.calibrate_text_encoder"),
        ("families/sd1.py", "HEADS = 8", "HEADS = 9", "axbake.families.sd1.FAMILY"),
        ("npz.py", "ZIP_TIME = (1980", "ZIP_TIME = (1981", "axbake.drawing.schedule.derive_schedule"),
        ("emulator/encoding.py", "WEIGHT_LIMIT = 127", "WEIGHT_LIMIT = 126", "axbake.emulator.__main__"),
        ("emulator/build.py", "Network Quantization Finished", "Network Finished", "axbake.emulator.__main__"),
        ("loras/fusing.py", "tensor.float()", "tensor.double()", "axbake.weights.importing.import_denoiser"),
    ],
)
def test_a_change_of_the_package_that_counts_is_seen(file, old, new, function, package):
    before = codes([function])

    edit(package / file, old, new)

    assert changed(before) == {function}


def test_the_texts_that_preflight_writes_of_an_unreadable_graph_count(package):
    """`str(error)` of them stands in its findings."""
    before = codes(["axbake.preflight.verdict.preflight", "axbake.graphs.export.export_onnx"])

    edit(package / "preflight" / "graph.py", "or truncated", "or is damaged")

    assert changed(before) == {"axbake.preflight.verdict.preflight"}


def test_the_texts_of_errors_that_end_a_job_count_for_nothing_though_they_are_reported(package):
    before = codes(["axbake.emulator.__main__", "axbake.checkpoints.conversion.convert_checkpoint"])

    edit(package / "emulator" / "config.py", "is not JSON", "is no JSON")
    edit(package / "checkpoints" / "pickles.py", "that are not a complete zip archive", "that are damaged")

    assert changed(before) == set()
    assert all(parameters_of(function) is not None for function in REPORTERS)


def test_reading_the_package_imports_none_of_it():
    text = "import sys; from axbake.jobs.code import code_of; code_of(*sys.argv[1:]); print(*sys.modules)"
    loaded = run_python(text, *FUNCTIONS).split()

    assert {name for name in loaded if name.startswith("axbake.")} == {
        *("axbake.jobs", "axbake.jobs.code", "axbake.jobs.definitions", "axbake.jobs.reading", "axbake.jobs.speech"),
    }
    assert not {"torch", "numpy", "onnx"} & set(loaded)


def test_the_same_code_gives_the_same_digests_in_another_process():
    text = "import sys; from axbake.jobs.code import code_of; print(code_of(*sys.argv[1:]))"

    assert {run_python(text, *FUNCTIONS, PYTHONHASHSEED=seed) for seed in ("1", "2")} == {f"{code_of(*FUNCTIONS)}\n"}


def run_python(text, *arguments, **environment):
    """What *text* prints, in a process of its own."""
    command = [sys.executable, "-c", text, *arguments]
    how = {"cwd": ROOT, "env": os.environ | environment, "check": True, "capture_output": True, "text": True}
    return subprocess.run(command, **how).stdout


# Execution ---------------------------------------------------------------------------------------------------------------

BELOW = f"{ROOT / 'axbake'}{os.sep}"


@contextlib.contextmanager
def traced():
    """Functions of the package that are called meanwhile, in any thread: file and first line; not by the import of a module."""
    called = set()

    def note(frame, event, argument):
        path, place = frame.f_code.co_filename, (frame.f_code.co_filename, frame.f_code.co_firstlineno)
        if path.startswith(BELOW) and place not in called and not is_importing(frame):
            called.add(place)

    before = sys.gettrace()
    threading.settrace(note)
    sys.settrace(note)  # called with each frame; gives none back, so not with each line
    try:
        yield called
    finally:
        sys.settrace(before)
        threading.settrace(None)


def is_importing(frame):
    while frame:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(BELOW):
            return True
        frame = frame.f_back
    return False


@functools.cache
def definitions_in(path):
    """First and last line of each statement of a file, and the names that it binds."""
    found = []
    for statement in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", []))])
        found.append((first, statement.end_lineno, set(definitions.bound(statement))))
    return found


def definition_at(path, line):
    """Module and names of the definition that a line is in: also of a method, a lambda, a function within."""
    module = ".".join(Path(path).relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    (names,) = (names for first, last, names in definitions_in(path) if first <= line <= last)
    return module, frozenset(names)


@pytest.fixture(scope="module")
def called(model, graph_of, tmp_path_factory):
    """Function of a rule -> definitions whose code ran when it was called on the tiny model."""
    place, weights, found = tmp_path_factory.mktemp("called"), model.weights, {}

    @contextlib.contextmanager
    def running(function, *given):
        """Note what runs meanwhile, as that of *function*; *given*: what it takes by value."""
        for name, module in list(sys.modules.items()):  # what it computed for others it must compute anew
            for value in vars(module).values() if name.startswith("axbake.") else ():
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()
        with traced() as lines:
            yield
        values = [name for value in given for name in encode(value)[1]]
        found[function] = (values, {definition_at(*line) for line in lines})

    family, networks = model.family, model.networks
    denoiser, decoder, encoder = family.denoiser, family.of_role(DECODER), family.of_role(ENCODER)
    lora = loras.save(loras.kohya(loras.pairs(networks)), place / "lora.safetensors")
    part, sampling = as_files(denoiser), family.process.sampling
    with running("axbake.weights.importing.import_denoiser", part, sampling, family.latents):
        import_denoiser(
            model.checkpoint,
            [lora],
            component=part,
            family=family.name,
            title=family.title,
            latents=family.latents,
            prediction_type=family.process.prediction_type,
            sampling=sampling,
            strengths=[0.5],
            prediction="",
            sidecar="",
            weights=place / "unet.safetensors",
        )
    (piece,) = decoder.graphs
    graph = place / "vae_decoder.onnx"
    made = {"graph": graph, "tensors": tensors_of(graph)}
    columns = {name: COLUMNS[name] for name in decoder.columns}
    with running("axbake.graphs.export.export_onnx", decoder.build, piece):
        export_onnx(weights["vae_decoder"], build=decoder.build, piece=piece, columns=columns, **made)
    with running("axbake.graphs.parity.measure_parity", decoder.build, piece, decoder.example):
        measure_parity(
            weights["vae_decoder"],
            [graph],
            [tensors_of(graph)],
            component=decoder.name,
            build=decoder.build,
            pieces=decoder.graphs,
            example=decoder.example,
            columns=columns,
            parity=place / "parity.json",
        )
    with running("axbake.drawing.schedule.derive_schedule", denoiser.rows):
        schedule = model.schedule(place / "schedule.npz")
    drawing = model.builds, model.states, family.process.pipelines[""], family.conditioning
    picture = model.picture(prompt="a (rocket:1.2), in the night", negative_prompt="blurry")
    with running("axbake.drawing.reference.draw_reference", *drawing, picture):
        jobs.draw_picture(model, picture, place)
    prompts = ["slice of pizza", "a [penguin]"]
    with running("axbake.calibration.trajectories.record_trajectories", *drawing, denoiser.with_rows, family.latents):
        jobs.record(model, schedule, place / "trajectories.npz", prompts=prompts, negative_prompt="blurry")
    graphs = [graph_of(denoiser.name)]
    with running("axbake.calibration.tars.calibrate_denoiser"):
        jobs.calibrate(denoiser, graphs, place, [place / "unet.tar"])
    with running("axbake.calibration.tars.calibrate_text_encoder"):
        calibrate_text_encoder(
            model.embeddings, component="text_encoder", prompts=prompts, archive=place / "text_encoder.tar"
        )
    pictures, latents = place / "pictures.npy", place / "latents.npy"
    with running("axbake.calibration.pictures.draw_pictures"):
        draw_pictures(height=64, width=64, pictures=pictures)
    np.save(pictures, np.load(pictures)[:2])
    with running("axbake.calibration.pictures.encode_pictures", encoder.build):
        how = {"build": encoder.build, "channels": 4, "precision": "float32", "device": "cpu"}
        encode_pictures(pictures, weights[encoder.name], **how, latents=latents, chosen=place / "encoder.json")
    with running("axbake.calibration.tars.calibrate_encoder"):
        calibrate_encoder(pictures, place / "encoder.json", archive=place / "vae_encoder.tar")
    with running("axbake.calibration.pictures.decode_latents", decoder.build):
        how = {"build": decoder.build, "precision": "float32", "device": "cpu"}
        decode_latents(latents, weights[decoder.name], **how, chosen=place / "decoder.json")
    with running("axbake.calibration.tars.calibrate_decoder", piece):
        chosen = place / "decoder.json"
        calibrate_decoder(latents, chosen, piece=piece, columns=columns, archive=place / "vae_decoder.tar")
    return found


EXECUTED = {
    "axbake.graphs.export.export_onnx": 15,
    "axbake.graphs.parity.measure_parity": 10,
    "axbake.drawing.schedule.derive_schedule": 15,
    "axbake.drawing.reference.draw_reference": 30,
    "axbake.calibration.trajectories.record_trajectories": 40,
    "axbake.weights.importing.import_denoiser": 70,
    "axbake.calibration.tars.calibrate_denoiser": 35,
    "axbake.calibration.tars.calibrate_text_encoder": 8,
    "axbake.calibration.pictures.draw_pictures": 3,
    "axbake.calibration.pictures.encode_pictures": 15,
    "axbake.calibration.pictures.decode_latents": 15,
    "axbake.calibration.tars.calibrate_encoder": 3,
    "axbake.calibration.tars.calibrate_decoder": 2,
}  # function -> least number of definitions whose code it runs


@pytest.mark.parametrize("function", EXECUTED)
def test_all_that_ran_is_reached(function, called):
    values, lines = called[function]
    reached = {(module, symbol) for module, names in symbols_of(function, *values).items() for symbol in names}

    ran = {(module, names) for module, names in lines if module not in SPEAKS and names != {"Family"}}

    assert len(ran) >= EXECUTED[function]
    assert [(module, *names) for module, names in ran if not any((module, each) in reached for each in names)] == []


# Every part ---------------------------------------------------------------------------------------------------------------

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "axbake").rglob("*.py")
)


def errors_of_the_package():
    """Names of all classes that derive from an error, by their names alone."""
    classes = {}
    for path in (ROOT / "axbake").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = {ast.unparse(base) for base in node.bases}
    found = {"Exception", "ValueError"}
    while more := {name for name, bases in classes.items() if bases & found} - found:
        found |= more
    return found


def may_only_speak(statement, errors):
    """Parts of *statement* that may change without being seen: by what they stand in alone."""
    parts = []
    for node in ast.walk(statement):
        call = node.value if isinstance(node, ast.Expr) else None
        asked = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
        if isinstance(node, ast.Raise) or asked in ("tell", "self.tell") or asked.startswith(("logger.", "warnings.")):
            parts.append(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (*errors, "progress"):
            parts += [*node.args, *node.keywords]
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            parts.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            parts.append(node.returns)
        elif isinstance(node, ast.Assert) and node.msg:
            parts.append(node.msg)
    return {id(inner) for part in parts for inner in ast.walk(part)}


SPEAKING = {"progress", "logger"}


def loaded_names(code_object):
    """Names that a code object, or one within, looks up in its module or among the builtins."""
    own = {each.argval for each in dis.get_instructions(code_object) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [each for each in code_object.co_consts if isinstance(each, types.CodeType)]
    return own.union(*map(loaded_names, inner))


def test_every_name_that_pythons_own_compiler_looks_up_is_reached():
    errors, reached, missed, number = errors_of_the_package(), symbols_of(*FUNCTIONS), [], 0
    for name, names in reached.items():
        tree = ast.parse(definitions.file_of(name).read_text())
        for statement in tree.body:
            own = set(definitions.bound(statement))
            if not own & set(names) or not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                continue
            spoken = may_only_speak(statement, errors)
            outside = {each.id for each in ast.walk(statement) if isinstance(each, ast.Name) and id(each) not in spoken}
            compiled = compile(ast.Module([statement], []), name, "exec")
            for looked_up in loaded_names(compiled) & outside:
                number += 1
                for place in definitions.module_of(name).define(looked_up, []) if looked_up not in SPEAKING else ():
                    known = place.module in (*SPEAKS, "") or not place.name
                    if not known and place.name not in reached.get(place.module, ()):
                        missed.append(f"{name}.{own}: {place}")

    assert missed == []
    assert number > 3000


def another(node):
    """A field of *node* that can have another value, and this value; None if nothing of it matters but what is in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        return "value", not node.value if isinstance(node.value, bool) else -1 - node.value
    if isinstance(node, ast.BinOp):
        return "op", ast.Mult() if isinstance(node.op, ast.MatMult) else ast.MatMult()
    if isinstance(node, ast.UnaryOp):
        return "op", ast.USub() if isinstance(node.op, ast.UAdd) else ast.UAdd()
    if isinstance(node, ast.Compare):
        return "ops", [ast.Is() if isinstance(each, ast.IsNot) else ast.IsNot() for each in node.ops]
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        return "test", ast.Constant(7)
    for kind, name in ((ast.Name, "id"), (ast.Attribute, "attr"), (ast.keyword, "arg"), (ast.arg, "arg")):
        if isinstance(node, kind) and getattr(node, name):
            return name, f"{getattr(node, name)}_other"
    return None


def test_every_number_operator_condition_and_name_counts_unless_it_stands_where_something_is_said():
    """One of 100 of them, all over the package, each changed in the syntax tree."""
    forget()
    errors, number, unseen = errors_of_the_package(), 0, []
    for name in sorted(set(MODULES) - {*SPEAKS}):
        module = definitions.Module(name)
        for statement in module.statements:
            digest = functools.partial(reading._Reader, module, statement, full=False)
            before, spoken = digest().read().digest, may_only_speak(statement, errors)
            for node in ast.walk(statement):
                if id(node) in spoken or not (change := another(node)):
                    continue
                number += 1
                if number % 100:
                    continue
                old = getattr(node, change[0])
                setattr(node, *change)
                if digest().read().digest == before:
                    unseen.append(f"{name}, line {getattr(node, 'lineno', '?')}: {change[0]} {old}")
                setattr(node, change[0], old)
    forget()

    assert unseen == []
    assert number > 30_000
