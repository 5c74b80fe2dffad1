"""Writes expected.json: what Jinja2, set up as transformers sets it up for chat templates, makes of many small templates.

Every test, filter, method and operator meets every type of value. `python tests/jinja/make.py` (Jinja2 3.1) writes the same bytes again.
A case is `[template, text]`; where Jinja2 raises, the text is null.
"""

import itertools
import json
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Variables of the context, by name. A tuple, and what is not defined, only a template can write.
VARIABLES = {
    "none_": None,
    "yes": True,
    "no": False,
    "zero": 0,
    "seven": 7,
    "minus": -3,
    "half": 2.5,
    "whole": 4.0,
    "empty": "",
    "word": "abc",
    "text": " Hello wORLD-it's ",
    "digits": "42",
    "accents": "Straße É\n\tß",
    "nothing": [],
    "numbers": [3, 1, 2],
    "words": ["b", "A", "a'\"c"],
    "mixed": [None, True, 1.0, "x", [1], {"k": "v"}],
    "bare": {},
    "map": {"b": 1, "a": None, "C": "x"},
    "people": [{"name": "Bo", "age": 3}, {"name": "al", "age": 1}, {"name": "Bo", "age": 2}],
}
LITERALS = ["missing", "(1, 'a')", "()"]
VALUES = [*VARIABLES, *LITERALS]
SOME = ["missing", "none_", "yes", "zero", "seven", "minus", "half", "empty", "word", "digits", "numbers", "nothing", "map", "(1, 'a')"]
STRINGS = ["empty", "word", "text", "digits", "accents"]
LISTS = ["nothing", "numbers", "words", "mixed", "people"]

TESTS = [
    "boolean", "callable", "defined", "undefined", "escaped", "even", "odd", "false", "true", "filter", "test", "float", "integer", "iterable", "lower",
    "upper", "mapping", "none", "number", "sequence", "string",
]
TESTS_OF_TWO = ["divisibleby", "eq", "equalto", "ne", "ge", "gt", "greaterthan", "le", "lt", "lessthan", "in", "sameas"]
FILTERS = [
    "abs", "attr('a')", "batch(2) | list", "batch(2, 'x') | list", "capitalize", "center(9)", "count", "d('x')", "default('x')", "default('x', true)",
    "default('x', boolean=true)", "dictsort", "dictsort(true)", "dictsort(false, 'value')", "dictsort(by='value', reverse=true)", "e", "escape",
    "filesizeformat", "first", "float", "float(1.5)", "forceescape", "format(1)", "indent", "indent(2, true)", "indent(width=1, blank=true)",
    "indent('> ')", "int", "int(5)", "int(0, 16)", "items | list", "join", "join('-')", "join(d=', ')", "join(', ', attribute='name')", "last", "length",
    "list", "lower", "map('upper') | list", "map(attribute='name') | list", "map(attribute='zip', default='?') | list", "map('string') | join(',')",
    "max", "min", "max(attribute='age')", "pprint", "random | string | length > -1", "reject | list", "reject('none') | list",
    "rejectattr('age') | list", "rejectattr('age', 'gt', 1) | list", "replace('a', 'b')", "replace('l', 'L', 1)", "reverse | list", "reverse", "round",
    "round(1)", "round(0, 'floor')", "round(method='ceil')", "round(-1)", "safe", "select | list", "select('string') | list", "select('gt', 1) | list",
    "selectattr('age') | list", "selectattr('age', 'equalto', 1) | list", "selectattr('name', 'defined') | list", "slice(2) | list",
    "slice(2, 'x') | list", "sort", "sort(true)", "sort(reverse=true)", "sort(attribute='name')", "sort(case_sensitive=true)",
    "sort(attribute='name,age')", "string", "striptags", "sum", "sum(start=10)", "sum(attribute='age')", "title", "tojson", "tojson(indent=2)",
    "tojson(ensure_ascii=true)", "tojson(indent=1, sort_keys=true)", "tojson(separators=(',', ':'))", "tojson(sort_keys=true)", "trim",
    "trim('b ')", "truncate(5)", "truncate(3, true, '', 0)", "unique | list", "unique(true) | list", "unique(attribute='name') | list", "upper",
    "urlencode", "wordcount", "wordwrap(4)", "xmlattr", "groupby('name') | list", "groupby('name') | length",
]
METHODS = {
    "str": [
        "capitalize()", "casefold()", "center(8)", "center(8, '*')", "count('l')", "count('')", "encode()", "endswith('c')", "endswith(('c', 'x'))",
        "expandtabs()", "find('c')", "find('l', 4)", "find('é')", "format()", "index('c')", "isalnum()", "isalpha()", "isascii()", "isdecimal()",
        "isdigit()", "isidentifier()", "islower()", "isnumeric()", "isprintable()", "isspace()", "istitle()", "isupper()", "join(['x', 'y'])", "join('ab')",
        "join(words)", "join(numbers)", "ljust(6)", "ljust(6, '.')", "lower()", "lstrip()", "lstrip(' H')", "lstrip(none_)", "partition('b')",
        "partition('zz')", "removeprefix('a')", "removesuffix('c')", "replace('l', 'L')", "replace('l', 'L', 1)", "replace('', '-')", "rfind('l')",
        "rindex('c')", "rjust(6)", "rjust(6, '0')", "rpartition('b')", "rpartition('zz')", "rsplit()", "rsplit('l')", "rsplit('l', 1)",
        "rsplit(maxsplit=1)", "rstrip()", "rstrip('c ')", "split()", "split('l')", "split('l', 1)", "split(none_)", "split(none_, 1)", "split(maxsplit=1)",
        "split(sep='l')", "split('')", "splitlines()", "splitlines(true)", "splitlines(keepends=true)", "startswith('a')", "startswith(('x', 'a'))",
        "startswith('b', 1)", "strip()", "strip('a ')", "strip('')", "swapcase()", "title()", "upper()", "zfill(5)", "unknown()",
    ],
    "list": ["count(1)", "count('b')", "index(1)", "index('b')", "copy()", "append(1)", "pop()", "insert(0, 1)", "extend([1])", "remove(1)", "reverse()",
             "sort()", "clear()", "unknown()"],
    "dict": ["get('b')", "get('zz')", "get('zz', 'x')", "get('a', 'x')", "items() | list", "items()", "keys() | list", "keys()", "values() | list",
             "values()", "copy()", "pop('b')", "popitem()", "setdefault('b', 1)", "update({'b': 2})", "clear()", "unknown()", "fromkeys(['a']) "],
    "tuple": ["count(1)", "index('a')"],
    "number": ["bit_length()", "is_integer()", "real", "imag", "numerator"],
}
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]
SUBSCRIPTS = [
    "[0]", "[-1]", "[1]", "[9]", "[-9]", "['b']", "['zz']", "[none_]", "[true]", "[1.0]", ".b", ".zz", ".0", "[:]", "[1:]", "[:-1]", "[-2:]", "[::2]", "[::-1]",
    "[2:0:-1]", "[:1000]", "[5:]", "[-1000:1]", "[1:2][0]", "[:none_]",
]
# `%` of text: each form over each value, and how it binds.
FORMATS = [
    "%s", "%r", "%a", "%d", "%i", "%u", "%x", "%X", "%o", "%e", "%E", "%f", "%F", "%g", "%G", "%c", "%5s|", "%-5s|", "%05d", "%+d", "% d", "%#x", "%#o", "%+.2f", "%.3d", "%08.3f",
    "%.2s", "%.0e", "%.10g", "%#g", "%(a)s", "%(b)s %(C)r", "%%", "abc", "%", "%y", "%s %s", "%*d", "%.*f", "%ld", "%-+8d|", "%+05d", "%(b)05d", "%5%|",
]
FORMATTED = [
    "'%s %s' % (word, 1)", "'%s' % word ~ '!'", "'%s' % word | upper", "('%s' % word) | upper", "'%s' % word + '!'", "'%s' * 2 % ('a', 'b')", "'%s%%s' % word % digits", "word % ()", "text % 1", "'%s' % 1 * 2", "2 * '%s' % (1, 2)", "'%s' % [1, 'a']",
    "'%d%%' % half", "'%s' % (word,)", "'%s' % ((1, 2),)", "'%s' % none", "'%s' % true", "'%d' % true", "'%x' % true", "'%5.1f|%-7.2e|%G' % (2.25, 12345.678, 1e20)", "'%g %g %g %g' % (0.0001, 0.00001, 1234567.0, 100000)", "'%.3g %.0f %.0f' % (0.00012345, 0.5, 1.5)",
    "'%s' % '%s' % 'x'", "'%c%c' % ('é', 8364)", "'%c' % 'ab'", "'%r %a' % ('é\\n', 'é😀')", "'%*d|%-*d|' % (5, 1, 5, 2)", "'%.*f' % (1, 2.25)", "'%s' % people[0].name", "'%(name)s is %(age)d' % people[0]", "'%(a(b))s' % {'a(b)': 1}", "'%(a)s' % {'a': '%(b)s'} % map", "'%(a)s %s' % {'a': 1}",
    "numbers[7 % 3]", "(1 + 6 % 4) * 2", "seven % 3 == 1", "seven % -3", "-seven % 3", "- 2 ** 2 % 3", "seven % 2 ** 2", "seven % 4 % 2", "12 // 5 % 2", "2 * 7 % 3", "7 % 2 * 3", "1 if seven % 2 else 0", "[seven % 2, {'a': seven % 4}]", "not seven % 7", "seven % 3 ~ 'x'", "seven % 3 in [1]", "numbers | map('string') | join('%')", "half % 1",
    "seven % 2 is odd", "seven is divisibleby 7 % 2", "dict(a=7 % 4)", "'a%b' ~ '%'", "'%i items, %s' % (numbers | length, words | join('%'))", "'%s' % {'a': 1}", "'%s' % ('x' if no else 'y')", "'%#X %#o %o' % (255, 8, -8)", "'%+d % d %+.1f' % (1, 2, -0.04)", "'%08.2f|%-8.2f|%+8.2f' % (1.5, 1.5, 1.5)",
    "'%05s|%5c|' % ('a', 'b')", "'%f' % 'x'", "'%d' % '3'", "'%x' % 1.0", "'%o' % half", "'%d %d' % (1e15, -2.9)", "'%.2f' % 1e22", "'%s' % 1e22", "'%e' % 0", "'%#.0f %#.0e' % (1, 1)", "+ half", "+seven + +zero", "(+seven)", "[+1, - +2]", "seven - + 2", "seven+1", "'%s' | format('a', 'b')", "'%(x)s' | format(x=1)", "'%s %s' | format(1)", "'%d' | format(2.9)",
    "'%5d|' | format(3)", "'%s' | format", "'%' | format", "'%.1f%%' | format(99.5)",
]
# Printed as they stand.
PRINTED = [
    "1e20", "1e16", "1e15", "123456789012345680.0", "1e-5", "1e-4", "0.1 + 0.2", "1/3", "2**70", "-7 // 2", "-7 % 3", "7.5 // 2", "2 ** -1", "2 ** 0.5", "1.0", "-0.0",
    "10 / 5", "7 / 2", "1_000", "'a' 'b'", "'it\\'s'", "['it\\'s']", "['\\n\\t\\\\']", "['é😀']", "['\"']", "['\\x00']", "[1.0, 1e20, none, true]", "{'a': [1, (2,)]}", "(1,)", "()", "{1: 2, none: 3, true: 4}",
    "[missing]", "[range(3)]", "range(3)", "range(3) | list", "range(5, 0, -2) | list", "range(0)", "range(3)[1]", "range(10)[2:4] | list", "range(3) | length", "dict(a=1)", "dict(map, z=1)", "dict([('a', 1)])",
    "namespace(a=1).a", "'%s and %d' % ('x', 3)", "'%s' % word", "'%.2f' % half", "'%5d|%-5d|%05d' % (1, 2, 3)", "'%(b)s' % map", "'%%' % ()", "'%s' % [1]", "'%r' % word", "'%x' % 255",
    "'{} {}'.format(1, 'a')", "'{0}{1}{0}'.format('x', 'y')", "'{a}'.format(a=1)", "'{:.2f}'.format(2.5)", "'{:>5}|{:<5}|{:^5}'.format(1, 2, 3)", "'{:,}'.format(1234567)", "'{!r}'.format('a')", "'{{}}'.format()", "'{[0]}'.format([5])",
    "not none_", "not empty", "not nothing", "not map", "- seven", "+ seven", "-true", "1 if missing else 2", "1 if no", "(1 if no) is undefined", "word if missing is defined", "1 < 2 < 3", "3 > 2 > 2", "1 == 1.0", "true == 1", "'a' < 'b'", "[1] < [2]",
    "[1, 2] == [1, 2]", "(1, 2) == [1, 2]", "{'a': 1} == {'a': 1.0}", "1 in [1.0]", "'b' in map", "none in [none]", "'ell' in text", "'' in word", "1 is in [1]", "word is not string", "seven is divisibleby 7", "3 is not divisibleby(2)", "none_ is none and no is false",
    "[1, 2] + [3]", "[1] + [2] | length", "([1] + [2])[1]", "(1,) + (2,)", "'a' * 3", "3 * 'a'", "[0] * 3", "'-' * 0", "'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1, 'x']", "words | join(', ') ~ '!'", "numbers | map('string') | list", "map | length", "map | list", "map | first", "map | last", "map | sort",
    "map.items() | list", "map.keys() | list | tojson", "map.items() | first", "(map.items() | list)[0][1]", "map.values() | select | list", "map | dictsort | map('first') | join", "people | map(attribute='name') | unique | list", "people | groupby('name') | map('first') | list", "people[0].name", "people[-1]['age'] + 1", "people | sum('age')",
    "word | upper | lower", "word[0] | upper", "word[1:] ~ word[0]", "accents | length", "accents[5]", "accents | upper", "accents.split()", "text.strip().split(' ')", "text.split('-')[0].strip()", "'a,b,,c'.split(',')", "'a  b'.split(' ')", "'a--b'.rsplit('--')[-1]", "'x'.join(words)", "'\\n'.join(['a', 'b'])", "'abc'.replace('b', '')",
    "missing", "missing ~ 'x'", "missing | default('y')", "missing | length", "missing | list", "missing | join", "missing is iterable", "missing == none", "missing == missing", "missing.a", "map.zz.y", "map.zz", "missing in [1]", "1 in missing", "missing + 1", "missing | upper", "missing | trim", "missing | tojson", "missing or 'x'", "not missing", "[] | first", "[] | first is defined", "[] | last", "[] | min", "[] | sum",
    "none | default('x')", "none | default('x', true)", "none ~ ''", "none | string", "none | upper", "none | length", "none is iterable", "none == false", "none.a", "'a' is sameas 'a'", "1 is sameas true", "1.0 is sameas 1", "true | int", "true | string", "true | tojson", "true + true", "'5' | int + 1", "'0x1f' | int(0, 16)", "'1.5' | int", "'x' | int", "'1e3' | float", "3.7 | int", "-3.7 | int", "2.5 | round", "3.5 | round | int", "2.675 | round(2)", "1234.5 | round(-2)", "7 | round",
    "'&<>\\'\"' | e", "'<b>' | escape", "'<b>' | safe", "('<b>' | e) ~ '<'", "'<a>' | tojson", "'é' | tojson", "'é\\u2028' | tojson(ensure_ascii=true)", "{'a': '\\n\"\\\\/'} | tojson", "1.0 | tojson", "1e20 | tojson", "1e-7 | tojson", "[] | tojson(indent=2)", "{} | tojson(indent=4)", "[[], {}, [1]] | tojson(indent=2)", "(1, 2) | tojson", "{1: 2, none: 3, true: 4, 1.5: 5} | tojson", "{'b': 1, 'a': {'d': 1, 'c': 2}} | tojson(sort_keys=true)", "range(2) | tojson",
    "'a b c' | wordcount", "'a b' | title", "\"it's o'neil x-y (abc)\" | title", "'HELLO wORLD' | capitalize", "'a\\nb\\n\\nc' | indent(2)", "'a\\nb' | indent(2, first=true)", "'abc' | reverse", "'abc' | list", "'abc' | first", "'cab' | sort | join", "'abc' | map('upper') | join", "[3, 'a'] | sort", "['b', 'A', 'c'] | sort", "['b', 'A', 'c'] | sort(case_sensitive=true)", "['a', 'A', 'b'] | unique | list", "[1, 1.0, true, 2] | unique | list", "[[1, 2], [3]] | map('length') | list", "[[1, 2], [3]] | sum(start=[])", "[1, none, 2] | select('none') | list", "[0, 1, '', 'a', none] | select | list", "[1, 2, 3, 4] | select('even') | list", "[1, 2, 3, 4] | reject('odd') | list", "[1, 2, 3, 4, 5] | batch(2) | list", "[1, 2, 3, 4, 5] | slice(2) | list", "{'a': {'b': 5}} | attr('a')", "people | selectattr('name', 'eq', 'Bo') | map(attribute='age') | max", "people | map(attribute='name') | join(', ')", "people | sort(attribute='age') | map(attribute='age') | list", "people | selectattr('age', '>', 1) | list | length", "[{'a': {'b': 1}}] | map(attribute='a.b') | list", "[[1, 2]] | map(attribute=1) | list", "[[1, 2]] | map(attribute='0') | list", "[1, 2] | map('string') | map('int') | sum", "words | map('length') | list", "words | map('replace', 'b', 'x') | list", "['a'] | map('default', 'x') | list",
    "cycler('a', 'b').next()", "joiner(',')()", "lipsum is defined", "range is callable", "word.upper is callable", "missing is callable", "dict is callable", "namespace is defined", "'upper' is filter", "'nope' is filter", "'odd' is test", "raise_exception is defined", "strftime_now is callable",
    "word.__class__", "''.__class__.__mro__", "map._private", "map['_private']", "word | attr('upper')", "map | attr('items')", "numbers.append", "numbers[1:] is sequence", "(numbers + [1]) is sequence", "numbers[1:] is iterable", "numbers[1:] == [1, 2]", "[1] + [2] == [1, 2]", "numbers[1:] is mapping", "numbers[1:] is string", "numbers[1:] | tojson", "numbers[1:][0]", "numbers[1:] + [1]", "(numbers + [1])[1:]", "numbers[1:].index(1)", "numbers[1:].count(1)", "numbers[1:] | length", "(numbers[1:]) ~ ''", "'a\\tb'.expandtabs(4)", "'-5'.zfill(4)", "'a b  c '.split(none_, 1)", "' a b  c '.rsplit(none_, 1)", "'a\\r\\nb\\x0bc'.splitlines()", "'Ab Cd'.istitle()", "'²3'.isdecimal()", "'٣'.isdecimal()", "'a-b-c'.replace('-', '', count=1)", "'abcabc'.find('c', -2)", "'abcabc'.rfind('a', 0, 3)", "'abcabc'.count('b', 2)", "'  7 ' | int", "1.5 | int(2)", "'inf' | float", "1e400", "0.0001", "0.00001234", "123456789.123", "1e15 + 0.5", "map.items is callable", "none_.x is defined", "word.zz is defined", "map.get is defined",
]
# Whole templates.
TEMPLATES = [
    "{% for x in numbers %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.cycle('o', 'e') }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for x in numbers %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}{{ loop.changed(x > 1) }} {% endfor %}",
    "{% for x in numbers %}{% for y in words %}{{ loop.index }}{{ x }}{{ y }}{% endfor %}{% else %}none{% endfor %}", "{% for x in nothing %}x{% else %}none{% endfor %}", "{% for x in missing %}x{% else %}none{% endfor %}",
    "{% for x in none_ %}x{% else %}none{% endfor %}", "{% for x in seven %}x{% endfor %}", "{% for x in word %}{{ x }}-{% endfor %}", "{% for k in map %}{{ k }}{% endfor %}", "{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k, v in map | items %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in map | dictsort %}{{ k }}={{ v }};{% endfor %}", "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}", "{% for x in numbers if x > 1 %}{{ loop.index }}{{ x }}{% endfor %}",
    "{% for x in numbers recursive %}{{ x }}{% endfor %}", "{% for p in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}{{ p.n }}{{ loop(p.c) }}{% endfor %}", "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in numbers | reverse %}{{ x }}{% endfor %}", "{% for x in numbers[::-1] %}{{ x }}{% endfor %}", "{% for x in numbers[1:] + [9] %}{{ x }}{{ loop.last }}{% endfor %}", "{% for x in numbers %}{% set y = x %}{% endfor %}{{ y is defined }}", "{% set n = namespace(v=0, l=[]) %}{% for x in numbers %}{% set n.v = n.v + x %}{% set n.l = n.l + [x] %}{% endfor %}{{ n.v }}{{ n.l }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = (1, 2) %}{{ a }}", "{% set a = 1, 2 %}{{ a }}", "{% set (a, b) = [1, 2] %}{{ b }}", "{% set x %}a {{ word }} b{% endset %}[{{ x }}]", "{% set x | upper %}a{{ word }}{% endset %}{{ x }}", "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}", "{% set word = word ~ '!' %}{{ word }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}", "{% macro m(a, b='x', c=none) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=1, a=2) }}", "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, z=3) }}", "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}", "{% macro m() %}{{ caller() }}!{% endmacro %}{% call m() %}in{% endcall %}", "{% macro m(x) %}{{ caller(x) }}{% endmacro %}{% call(y) m(3) %}<{{ y }}>{% endcall %}", "{% macro m() %}  x {% endmacro %}[{{ m() | trim }}]", "{% macro m() %}{{ word }}{% endmacro %}{{ m() ~ m() | upper }}", "{% macro m() %}a{% endmacro %}{{ m.name }}", "{% macro r(n) %}{{ n }}{% if n > 0 %}{{ r(n - 1) }}{% endif %}{% endmacro %}{{ r(3) }}",
    "{% if none_ %}a{% elif nothing %}b{% elif zero %}c{% elif empty %}d{% elif map %}e{% else %}f{% endif %}", "{% if numbers is iterable and numbers | length > 0 %}T{% endif %}", "{% if none_ is iterable and none_ | length > 0 %}T{% endif %}", "{% if word is string and word is iterable and word is not mapping %}s{% endif %}", "{% if map is mapping and map is iterable and map is sequence %}m{% endif %}", "{% filter upper %}a{{ word }}{% endfilter %}", "{% filter indent(2) %}a\nb\n{% endfilter %}", "{% raw %}{{ x }}{% endraw %}", "{# c #}a{#- d -#} b", "a {#- c #} b", "{%- if true -%} a {%- endif -%} b", "  {% if true %}\n  a\n  {% endif %}\n  b", "{{ 1 }}\n", "{{ 1 }}\n\n", "a\n{{ '' }}\nb", "a  {%- set x = 1 %}  b", "a\n  {%+ if true %}b{% endif %}", "{% if true +%}\na{% endif %}", "{{- ' a ' -}} b", "\n\na\n", "a\r\nb\r\n", "{% if true %}\r\na\r\n{% endif %}\r\nb", "a\rb\r\rc", "{{ 'a\r\nb' | length }}", "  {# c #}\r\n  a\r\n", "{%- if true %}\r\n  x\r\n{%- endif %}\r\n", "{{ 'a\\r\\nb' | length }}",
    "{# {% #}{% generation %}a{% endgeneration %}", "{% raw %}{{ 'a' % b }}{% generation %}{% endraw %}", "{% set a = '%}' %}{{ a % () }}", "{{ '}}%s' % 1 }}", "{% for x in ['%d'] %}{{ x % 3 }}{% endfor %}", "{% if '%d' % 3 == '3' %}a{% endif %}", "{% set n = namespace(a='%s') %}{% set n.a = n.a % 'x' %}{{ n.a }}", "{% macro m(f, x='%s' % 1) %}{{ f % x }}{% endmacro %}{{ m('<%s>') }}", "{%- set x = 7 % 4 -%} {{ x }}", "{{ 7\n% 4 }}", "{% for i in range(4) if i % 2 %}{{ i }}{% endfor %}",
    "{% generation %}a{% endgeneration %}b", "{%- generation -%} a {%- endgeneration -%} b", "{% do numbers.append(4) %}", "{{ numbers.append(4) }}", "{% set l = [] %}{{ l.append(1) }}", "{% set d = {} %}{{ d.update({'a': 1}) }}", "{% set n = namespace() %}{% set n.a = 1 %}{{ n.a }}{{ n.b is defined }}", "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}", "{% set j = joiner(', ') %}{% for x in numbers %}{{ j() }}{{ x }}{% endfor %}", "{{ raise_exception('no') }}", "{{ strftime_now('%Y') | length }}", "{{ strftime_now('%d %b %Y %H:%M:%S %A %B %j %p %I %y %a %m') | length > 30 }}", "{{ [1, 2, 3]|length }}{{ ' x '|trim }}", "{{ {'a':1}['a'] }}{{ {'a':1}.a }}", "{% for m in people %}{{ m['name'] + '\\n' }}{% endfor %}", "{{ people[1:] | map(attribute='name') | join }}", "{% for p in people | groupby('name') %}{{ p.grouper }}{{ p.list | length }}{{ p[0] }}{% endfor %}", "{{ numbers is sequence and numbers is not string }}", "{% set s = '' %}{% for x in words %}{% set s = s + x %}{% endfor %}[{{ s }}]", "{{ '%s' | format(word) }}{{ '%d-%s' | format(3, 'x') }}", "{{ word ~ (none_ or '') ~ (map.b | string) }}", "{{ (word if word else 'x') + '!' }}", "{{ [word, digits] | join('\\n') }}", "{{ map.get('b', 0) + 1 }}{{ map.get('q', {}).get('r', 'z') }}", "{% for i in range(numbers | length) %}{{ numbers[i] }}{% endfor %}", "{% for i in range(numbers | length - 1, -1, -1) %}{{ numbers[i] }}{% endfor %}", "{% block b %}x{% endblock %}", "{{ self is defined }}", "{% autoescape true %}{{ '<' }}{% endautoescape %}", "{% set x = {'a': 1, **map} %}", "{{ dict(map, **{'z': 1}) }}", "{{ numbers | first + 1 }}", "{{ -numbers[0] | abs }}", "{{ 1 + 2 ~ 3 }}", "{{ 2 * 3 ** 2 }}", "{{ -2 ** 2 }}", "{{ 2 ** 3 ** 2 }}", "{{ not 1 == 2 }}", "{{ 1 if true else 2 if false else 3 }}", "{{ 'a' if none_ is none else 'b' ~ 'c' }}", "{{ 'x' in 'xyz' and 'q' not in 'xyz' }}", "{{ not 'x' in 'xyz' }}", "{{ [1,2,] }}{{ (1,) }}{{ {'a':1,} }}", "{{ true }}{{ True }}{{ none }}{{ None }}{{ false }}{{ False }}", "{{ word . upper() }}", "{{ word['upper']() }}", "{{ map['items']() | list }}", "{{ {'items': 5}.items }}", "{{ {'items': 5}['items'] }}", "{{ {'get': 1, 'a': 2}.get('a') }}", "{{ {'keys': 1}.keys() | list }}", "{{ {'values': [1]}.values | length }}",
]


def environment():
    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(format):
        from datetime import datetime

        return datetime.now().strftime(format)

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            lineno = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_through"), [], [], body).set_lineno(lineno)

        def _through(self, caller):
            return caller()

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made


def sources():
    for test, value in itertools.product(TESTS, VALUES):
        yield f"{{{{ {value} is {test} }}}}"
    for test, left, right in itertools.product(TESTS_OF_TWO, SOME, SOME):
        yield f"{{{{ {left} is {test}({right}) }}}}"
    for filter, value in itertools.product(FILTERS, VALUES):
        yield f"{{{{ {value} | {filter} }}}}"
    of = {"str": STRINGS, "list": LISTS, "dict": ["bare", "map"], "tuple": ["(1, 'a')"], "number": ["seven", "half", "yes"]}
    for kind, methods in METHODS.items():
        for method, value in itertools.product(methods, of[kind]):
            yield f"{{{{ {value}.{method} }}}}"
    for left, operator, right in itertools.product(SOME, OPERATORS, SOME):
        yield f"{{{{ {left} {operator} {right} }}}}"
    for value, subscript in itertools.product(SOME, SUBSCRIPTS):
        yield f"{{{{ {value}{subscript} }}}}"
    for value in VALUES:
        yield f"{{{{ {value} }}}}|{{{{ [{value}] }}}}|{{{{ {value} ~ '' }}}}|{{% if {value} %}}T{{% endif %}}"
    for format, value in itertools.product(FORMATS, VALUES):
        yield f"{{{{ '{format}' % {value} }}}}"
    for expression in FORMATTED + PRINTED:
        yield f"{{{{ {expression} }}}}"
    yield from TEMPLATES


def main():
    made = environment()
    cases = []
    for source in dict.fromkeys(sources()):
        try:
            text = made.from_string(source).render(**json.loads(json.dumps(VARIABLES)))
        except Exception:
            text = None
        if text is not None and " at 0x" in text:
            continue
        cases.append([source, text])
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    variables = json.dumps(VARIABLES, ensure_ascii=False)
    Path(__file__).with_name("expected.json").write_text(f'{{"variables": {variables},\n"cases": [\n{lines}\n]}}\n', encoding="utf-8")


main()
