package main

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestMeterForgetsWhatIsOlderThanItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m meter
		for range 8 {
			m.record("v1", nil)
		}
		time.Sleep(window / 2)
		m.record("v2", nil)
		m.record("v2", nil)
		m.record("", errors.New("no healthy upstream"))

		if got := m.read(); got.share["v1"] < 0.79 || got.share["v1"] > 0.81 || got.rate != 10 || got.failed != 1 {
			t.Errorf("with all in the window: %+v", got)
		}
		time.Sleep(window/2 + 1)
		if got := m.read(); got.share["v2"] != 1 || got.rate != 2 {
			t.Errorf("with the first 8 out of it: %+v", got)
		}
		time.Sleep(window)
		if got := m.read(); len(got.share) != 0 || got.rate != 0 || got.failed != 1 {
			t.Errorf("with none in it: %+v", got)
		}
	})
}
