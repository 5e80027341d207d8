package main

import (
	"context"
	"fmt"
	"io"
	"time"
)

const (
	progressAfter = 2 * time.Second
	progressEvery = 5 * time.Second
)

// tellProgress says now and then what is being waited for, until ctx is done. What is
// done sooner than after two seconds needs no telling.
func tellProgress(ctx context.Context, w io.Writer, after, every time.Duration, waitingFor func() string) {
	begun := time.Now()
	timer := time.NewTimer(after)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if what := waitingFor(); ctx.Err() == nil {
			fmt.Fprintf(w, "still waiting after %s: %s\n", time.Since(begun).Round(time.Second), what)
		}
		timer.Reset(every)
	}
}
