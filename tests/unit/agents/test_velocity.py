"""Templates: what they say, what they can't reach, and what they cost at most."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansard_server.agents.velocity.budget import Budget
from hansard_server.agents.velocity.nodes import TemplateFault
from hansard_server.agents.velocity.parser import parse
from hansard_server.agents.velocity.render import render

VALUES: dict[str, Any] = {
    "session": {
        "key": "k",
        "name": "Order 7",
        "metadata": {"language": "es", "n": 5, "x": 2.5, "on": True, "list": [1, "a"], "a-b": "c"},
    },
    "tools": [
        {"name": "search", "description": "Finds."},
        {"name": "read", "description": "Reads."},
    ],
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("No template. It's $5.00, #1 and C#.", "No template. It's $5.00, #1 and C#."),
        ("${session.metadata.language}. If 'en'", "es. If 'en'"),
        ("$session.name.", "Order 7."),
        ("$!session.name $!{session.key}", "Order 7 k"),
        ("[$nothing][${session.metadata.nope.deeper}]", "[][]"),
        ("${session.metadata.nope|'en'} ${session.key|'x'}", "en k"),
        (r"\$session.name \#if", "$session.name #if"),
        ("$session.metadata.n $session.metadata.x $session.metadata.on", "5 2.5 true"),
        ("$session.metadata.list $session.metadata['a-b']", '[1,"a"] c'),
        ("$session.metadata.list[1] $session.metadata.list.get(0) $tools.size()", "a 1 2"),
        ("${session.name.toUpperCase()} $session.name.length()", "ORDER 7 7"),
        ("#if($session.metadata.n > 3 && !$none)yes#{else}no#end", "yes"),
        ("#if($none)a#elseif($session.key == 'k')b#else c#end", "b"),
        ("#if($session.metadata.n == '5')same#end", "same"),
        ("#if(not $none and 1 lt 2 or false)yes#end", "yes"),
        ("#set($x = 1 + 2 * 3 - 4 / 2 % 3)$x", "5"),
        ("#set($x = -7 / 2)$x #set($y = 7 / 0)[$y]", "-3 []"),
        ("#set($x = 'a$b')$x #set($y = \"a${session.key}\\n\")$y", "a$b ak\n"),
        (
            "#set($m = {'a': 1, 'b': [2, 3]})$m.b[1] $m.containsKey('a') $m.keySet()",
            '3 true ["a","b"]',
        ),
        ("#foreach($i in [3..1])$i#if($foreach.hasNext),#end#end", "3,2,1"),
        (
            "#foreach($t in $tools)$foreach.index/$velocityCount $t.name;#end",
            "0/1 search;1/2 read;",
        ),
        ("#foreach($i in [1..9])#if($i == 4)#break#end$i#end!", "123!"),
        ("#foreach($i in [])x#{else}none#end", "none"),
        ("#foreach($v in {'a': 1, 'b': 2})$v#end", "12"),
        ("a#stop b", "a"),
        ("a## comment\nb#* c *#d#[[$raw #if(]]#", "ab" + "d$raw #if("),
        # A directive that has its line for itself takes the line with it.
        ("x\n  #if(true)\n  y\n  #end\nz", "x\n  y\nz"),
        ("x\n#foreach($t in $tools)\n- $t.name\n#end\n", "x\n- search\n- read\n"),
        ("#set($t = 'x')#foreach($t in [1])$t#end$t", "1x"),
    ],
)
def test_templates_say(template: str, text: str) -> None:
    assert render(template, VALUES) == text


@pytest.mark.parametrize(
    ("template", "line", "column", "word"),
    [
        ("a\n #end", 2, 2, "#end"),
        ("#if(true)", 1, 1, "no #end"),
        ("x\n#foreach($a in [1])", 2, 1, "no #end"),
        ("#if($a", 1, 7, "needs"),
        ("#set($a.b = 1)", 1, 8, "variable"),
        ("#set(a = 1)", 1, 6, "needs"),
        ("${a", 1, 4, "'}'"),
        ("#if(1 +)#end", 1, 8, "value"),
        ("#* never", 1, 1, "not closed"),
        ("#if(true)#else#else#end", 1, 15, "#else"),
        ("#include('/etc/passwd')", 1, 1, "not available"),
        ("#parse('x')", 1, 1, "not available"),
        ("#evaluate($x)", 1, 1, "not available"),
        ("#macro(m)x#end", 1, 1, "not available"),
        ("#define($m)x#end", 1, 1, "not available"),
        ("#if(12345678901234567890)#end", 1, 5, "digits"),
    ],
)
def test_faults_are_named_with_their_place(
    template: str, line: int, column: int, word: str
) -> None:
    with pytest.raises(TemplateFault, match=word) as caught:
        parse(template)
    assert (caught.value.line, caught.value.column) == (line, column)


@pytest.mark.parametrize(
    "template",
    [
        "$session.__class__",
        "$session.__class__.__mro__[1].__subclasses__()",
        "$session.name.__class__.__init__.__globals__",
        "${session.metadata.list.__class__}",
        "$session['__class__']",
        "$session.get('__class__')",
        "$session.keys",
        "$session.items",
        "$session.name.format",
        "$__builtins__ $self $render",
        "#set($x = $session.metadata.__dict__)$x",
    ],
)
def test_no_object_of_the_program_is_reached(template: str) -> None:
    try:
        text = render(template, VALUES)
    except TemplateFault as fault:
        text = "" if "no method" in str(fault) else str(fault)
    assert text.strip() == ""


@pytest.mark.parametrize(
    "template",
    [
        "$session.name.format('x')",
        "$session.name.encode()",
        "$session.metadata.pop('n')",
        "$session.metadata.put('n', 1)",
        "$tools.append(1)",
        "$tools.clear()",
        "$session.name.matches('(a+)+b')",
        "$session.name.replaceAll('(a+)+b', 'x')",
    ],
)
def test_methods_are_only_those_that_are_listed(template: str) -> None:
    with pytest.raises(TemplateFault, match="no method"):
        render(template, VALUES)


HOSTILE = [
    "#foreach($i in [1..1000000000])x#end",
    "#foreach($i in [1..9999])#foreach($j in [1..9999])x#end#end",
    "#foreach($i in [1..9999])" * 20 + "#end" * 20,
    "#set($a = 'x')" + '#set($a = "$a$a")' * 64,
    "#set($a = 'x')#foreach($i in [1..9999])#set($a = $a + $a)#end",
    "#set($a = [1..9999])#foreach($i in $a)#if($a.contains(-1))#end#end",
    "#set($a = [1..9999])#foreach($i in $a)$a#end",
    "#set($a = [])#foreach($i in [1..9999])#set($a = [$a, $a])#end$a",
    "#set($a = [])#foreach($i in [1..25])#set($a = [$a, $a])#end#if($a == $a)x#end",
    "#set($a = {})#foreach($i in [1..25])#set($a = {1: $a, 2: $a})#end$a",
    "#set($n = 9)#foreach($i in [1..9999])#set($n = $n * $n)#end$n",
    "#if(" + "(" * 30_000 + "1",
    "#if(" + "$a.b(" * 10_000,
    "#if(" + "[$a.b(" * 10_000,
    "#if(" + "!" * 60_000 + "1)#end",
    "#if(true)" * 7_000,
    '#set($a = "' + '${a|\\"' * 9_000,
    "$a" + ".b" * 30_000,
    "$a" + "[0]" * 20_000,
    "#set($a = 1" + " + 1" * 15_000 + ")$a",
    "#" * 65_000,
    "$" * 65_000,
    "\\" * 65_000,
    "{" * 65_000,
    "#* " * 20_000,
    "#[[ " * 16_000,
    " " * 65_000 + "#if(true)" + " " * 400,
    "'" * 65_000,
    '"' * 65_000,
]


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_templates_are_bounded(template: str) -> None:
    """They end, as text or as a fault; steps and output are counted, so no clock decides."""
    try:
        text = render(template, VALUES, Budget(max_time_s=3_600))
    except TemplateFault:
        return
    assert len(text) <= 256 * 1024


def test_time_is_bounded_too() -> None:
    with pytest.raises(TemplateFault, match="too long"):
        render("#foreach($i in [1..9])$i#end", VALUES, Budget(max_time_s=-1))


def test_budget_is_one_for_all_templates_of_a_turn() -> None:
    budget = Budget()
    with pytest.raises(TemplateFault, match="writes more"):  # noqa: PT012 - which one is not ours
        for _ in range(100):
            render("$x", {"x": "a" * 10_000}, budget)


@given(st.text(alphabet="$#{}()[]|.,!=<>&'\"\\ \nabif12esndforach+-*/", max_size=200))
def test_any_text_is_rendered_or_refused(template: str) -> None:
    line = 1
    try:
        render(template, VALUES)
    except TemplateFault as fault:
        line = fault.line
    assert 1 <= line <= template.count("\n") + 1


@given(st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), st.lists))
def test_values_come_out_whatever_they_are(value: Any) -> None:
    text = render("$x", {"x": value})
    assert (text == "") == (value is None or value == "")


@given(st.text())
def test_values_are_never_read_as_templates(value: str) -> None:
    assert render("$x ${x}", {"x": value}) == f"{value} {value}"
