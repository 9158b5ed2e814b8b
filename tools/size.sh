#!/bin/sh
# Lines and files of Python in src, tests, tools and benchmarks, of the package by room, and files past 400 lines.
cd "$(dirname "$0")/.." || exit
find src tests tools benchmarks -name '*.py' -exec awk 'END { print NR, FILENAME }' {} \; | awk '
    function count(name) { lines[name] += $1; files[name] += 1 }
    { split($2, part, "/"); count(part[1]) }
    part[2] == "deformscope" { room = part[3]; sub(/\.py$/, "", room); count("  " room) }
    $1 > 400 { long = long sprintf("%7d lines: %s\n", $1, $2) }
    END {
        for (name in lines) printf "%s%7d lines %4d files  %s\n", (name ~ /^ / ? "1" : "0"), lines[name], files[name], name | "sort | cut -c2-"
        close("sort | cut -c2-")
        printf "past 400 lines: %s\n%s", long ? "" : "none", long
    }'
