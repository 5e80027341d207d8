package main

import (
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var escape = regexp.MustCompile(`\x1b\[[0-9]*[A-Za-z]`)

func TestTheDrawingFitsTheNarrowestTerminalItIsMadeIn(t *testing.T) {
	var out strings.Builder
	s := &screen{out: &out, inPlace: true, colored: true}
	s.show([]*meter{{name: "all calls"}, {name: "with x-version: v2"}}, time.Now().Add(-99*time.Hour))
	for line := range strings.Lines(escape.ReplaceAllString(out.String(), "")) {
		if width := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); width >= minWidth {
			t.Errorf("%d columns: %q", width, line)
		}
	}
}

func TestTheDrawingGoesOverTheLastOne(t *testing.T) {
	var out strings.Builder
	s := &screen{out: &out, inPlace: true}
	meters := []*meter{{name: "all calls"}}
	s.show(meters, time.Now())
	lines := strings.Count(out.String(), "\n")
	out.Reset()
	s.show(meters, time.Now())
	if want := "\x1b[4A"; lines != 4 || !strings.HasPrefix(out.String(), want) {
		t.Errorf("after %d lines it starts with %q", lines, out.String()[:8])
	}
}
