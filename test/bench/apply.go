package main

import (
	"context"
)

const applyRounds = 3

// apply measures server-side applies with 16 clients. Each round creates objects and then changes them.
func (b *bench) apply(ctx context.Context, targets []*target) error {
	batch := b.scaled(1000)
	for round := range applyRounds {
		if err := each(targets, func(t *target) error {
			var creates, changes load
			cpu, err := t.during(func() (err error) {
				if creates, err = applyAll(ctx, t, round*batch, batch, 0, nil); err != nil {
					return err
				}
				changes, err = applyAll(ctx, t, round*batch, batch, 1, nil)
				return err
			})
			if err != nil {
				return err
			}
			ops := creates.ops + changes.ops
			b.put("apply.16", t, float64(ops)/(creates.elapsed+changes.elapsed).Seconds())
			b.put("apply.create", t, creates.rate())
			b.put("apply.change", t, changes.rate())
			b.put("apply.cpu", t, cpu.total()/float64(ops))
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func applyAll(ctx context.Context, t *target, first, n, revision int, stop <-chan struct{}) (load, error) {
	return drive(ctx, 16, n, stop, func(ctx context.Context, i int) error {
		v := virtualService{"applied", first + i}
		_, err := t.client.size(ctx, request{
			method: "PATCH", path: t.base + v.item() + "?fieldManager=bench",
			contentType: "application/apply-patch+yaml", body: v.body(revision, ""),
		})
		return err
	})
}
