"""Every public name has types, says what it raises, and shows its use in an example that runs."""

import ast
import doctest
import inspect
import textwrap
import typing

import pytest
from public_names import ROOMS, is_function_or_class, public_names

DOCUMENTED = {
    f"{room}.{name}": value
    for room in ROOMS
    for name, value in public_names(room).items()
    if is_function_or_class(value)
}
MADE_BY = ("__init__", "__post_init__")  # the class speaks for them
WRAPPED = ("__func__", "fget", "func")  # by classmethod and staticmethod, property, cached_property

each_public_name = pytest.mark.parametrize("name", DOCUMENTED)


def sections(doc):
    """The lines of a docstring, its headings without the colon."""
    return [line.removesuffix(":") for line in inspect.cleandoc(doc or "").splitlines()]


def _is_ours(function):
    """Whether it is written in a file of the package: not by `dataclass`, not by `Protocol`."""
    return function.__code__.co_filename != "<string>" and function.__module__ != "typing"


def functions(value):
    """The function, or those of the class's own that others call, each with its name."""
    if inspect.isfunction(value):
        return {value.__name__: value}
    found = {}
    for name, member in vars(value).items():
        member = next((getattr(member, at) for at in WRAPPED if hasattr(member, at)), member)
        member = inspect.unwrap(member)
        public = not name.startswith("_") or name in (*MADE_BY, "__call__")
        if public and inspect.isfunction(member) and _is_ours(member):
            found[name] = member
    return found


@each_public_name
@pytest.mark.usefixtures("nothing_registered_stays")
def test_the_example_runs_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    doc = DOCUMENTED[name].__doc__  # not that of a base class
    assert "Example" in sections(doc)
    namespace = {"__name__": "__main__"}
    example = doctest.DocTestParser().get_doctest(doc, namespace, name, None, None)
    assert example.examples
    told = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=told.append)
    assert not told, "".join(told)
    assert not list(tmp_path.iterdir()), "the example left files behind"


@each_public_name
def test_types_are_given(name):
    value = DOCUMENTED[name]
    assert isinstance(typing.get_type_hints(value), dict)  # of a class: its fields
    for its_name, function in functions(value).items():
        signature = inspect.signature(function)
        without = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
        ]
        assert not without, its_name
        hints = typing.get_type_hints(function)
        assert "return" in hints or its_name in MADE_BY, its_name


@each_public_name
def test_every_parameter_is_explained(name):
    value = DOCUMENTED[name]
    if inspect.isfunction(value):  # fields of classes have comments, or stand under Attributes
        lines = [line.lstrip(" *") for line in sections(value.__doc__)]
        for parameter in inspect.signature(value).parameters:
            assert any(line.startswith(f"{parameter}: ") for line in lines), parameter


@each_public_name
def test_what_it_raises_is_said(name):
    value = DOCUMENTED[name]
    for its_name, function in functions(value).items():
        source = textwrap.dedent(inspect.getsource(function))
        if any(isinstance(node, ast.Raise) for node in ast.walk(ast.parse(source))):
            named = getattr(value, its_name, value)  # a docstring may be that of a base class
            docs = [inspect.getdoc(named), value.__doc__ if its_name in MADE_BY else None]
            assert any("Raises" in sections(doc) for doc in docs), its_name


def test_every_public_name_is_looked_at():
    assert len(DOCUMENTED) > 80
    assert {"jlora.split", "jlora.models.load", "jlora.extend.Method"} < set(DOCUMENTED)
