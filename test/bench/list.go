package main

import (
	"context"
	"time"
)

// listRounds is how often the targets take turns, and listTimes how many LISTs each does in its turn: /proc counts
// CPU time in steps of 10 ms.
const (
	listRounds = 5
	listTimes  = 5
)

// list measures LISTs of all objects.
func (b *bench) list(ctx context.Context, targets []*target) error {
	for _, form := range []struct {
		id   string
		gzip bool
	}{{"list", false}, {"list.gzip", true}} {
		for round := range listRounds {
			if err := each(targets, func(t *target) error {
				var latencies []float64
				cpu, err := t.during(func() error {
					for range listTimes {
						asked := time.Now()
						if _, err := t.client.size(ctx, request{method: "GET", path: t.base + resourcePath, gzip: form.gzip}); err != nil {
							return err
						}
						latencies = append(latencies, milliseconds(time.Since(asked)))
					}
					return nil
				})
				if err != nil || round == 0 {
					return err // the first round warms up
				}
				b.put(form.id+".cpu", t, cpu.api/listTimes)
				b.put(form.id+".latency", t, quantile(latencies, 0.5))
				return nil
			}); err != nil {
				return err
			}
		}
	}
	return nil
}
