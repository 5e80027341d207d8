package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	barWidth = 40
	// minWidth is more than the widest line we draw. In a narrower terminal lines would wrap, and going back up would miss.
	minWidth = 76
)

// colors tell the versions apart; the bars do so without them as well.
var colors = map[string]string{"v1": "\x1b[34m", "v2": "\x1b[32m"}

// screen shows the meters: redrawn in place in a terminal, a line at a time anywhere else. Safe for concurrent use.
type screen struct {
	out     io.Writer
	inPlace bool
	colored bool
	started time.Time

	mu    sync.Mutex
	drawn int // lines to go back up
}

func newScreen(out *os.File) *screen {
	width, _, err := term.GetSize(int(out.Fd()))
	return &screen{
		out:     out,
		inPlace: err == nil && width >= minWidth,
		colored: os.Getenv("NO_COLOR") == "",
		started: time.Now(),
	}
}

// interval is how often to call show.
func (s *screen) interval() time.Duration {
	if s.inPlace {
		return 200 * time.Millisecond
	}
	return time.Second
}

// show puts out the meters' readings and how long ago the route changed.
func (s *screen) show(meters []*meter, changed time.Time) {
	readings := make([]reading, len(meters))
	var total reading
	for i, meter := range meters {
		readings[i] = meter.read()
		total.rate += readings[i].rate
		total.failed += readings[i].failed
	}
	summary := fmt.Sprintf("%.0f calls/s, %d failed, route changed %s ago", total.rate, total.failed, since(changed))

	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.inPlace {
		fmt.Fprintf(s.out, "%5s", since(s.started))
		for i, meter := range meters {
			fmt.Fprintf(s.out, "  %s: v1 %3.0f %%, v2 %3.0f %%;", meter.name, 100*readings[i].share["v1"], 100*readings[i].share["v2"])
		}
		fmt.Fprintln(s.out, " ", summary)
		return
	}
	var text strings.Builder
	for i, meter := range meters {
		label := meter.name
		for _, version := range []string{"v1", "v2"} {
			share := readings[i].share[version]
			fmt.Fprintf(&text, "  %-20s %s %s %3.0f %%\n", label, version, s.bar(version, share), 100*share)
			label = ""
		}
		text.WriteByte('\n')
	}
	fmt.Fprintf(&text, "  %s\n", summary)
	s.redraw(text.String())
}

// note puts a line above the drawing, where it stays.
func (s *screen) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drawn > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.drawn)
		s.drawn = 0
	}
	fmt.Fprintf(s.out, format+"\n", args...)
}

func (s *screen) bar(version string, share float64) string {
	filled := int(math.Round(share * barWidth))
	color, reset := colors[version], "\x1b[0m"
	if !s.colored {
		color, reset = "", ""
	}
	return color + strings.Repeat("█", filled) + reset + strings.Repeat("░", barWidth-filled)
}

// redraw goes up over the last drawing and writes over it, in one piece, so that nothing flickers.
func (s *screen) redraw(text string) {
	up := ""
	if s.drawn > 0 {
		up = fmt.Sprintf("\x1b[%dA", s.drawn)
	}
	fmt.Fprint(s.out, up+strings.ReplaceAll(text, "\n", "\x1b[K\n"))
	s.drawn = strings.Count(text, "\n")
}

func since(t time.Time) string { return time.Since(t).Truncate(time.Second).String() }
