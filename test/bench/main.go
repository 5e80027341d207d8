// Command bench measures vmesh and, in the same run, kube-apiserver with Istio's CRDs and etcd: each a real process, on
// loopback with TLS, under the same client. docs/benchmarks.md says what each row means.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// runLimit ends a run that hangs; a whole one takes about half an hour on 2 cores, and with --shard-objects 50000 as much again.
const runLimit = 90 * time.Minute

// clientGC spares our own garbage collection, for which the servers would have to wait.
const clientGC = 800

type options struct {
	only        string
	scale       float64
	vmeshBinary string
	peer        bool
	json        bool
	out         string
	profileDir  string
	keep        bool
	// shardLoads and shardFeeds are of row 18: among what, and over how many shards.
	shardLoads []shardLoad
	shardFeeds []string
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "hostile" { // started by row 13
		if err := hostileMain(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "bench hostile:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 5 && os.Args[1] == "planes" { // started by row 16
		if err := planesMain(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, "bench planes:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) == 5 && (os.Args[1] == "view-members" || os.Args[1] == "view-reader") { // started by rows 20 and 21
		main := viewMembersMain
		if os.Args[1] == "view-reader" {
			main = viewReaderMain
		}
		if err := main(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintf(os.Stderr, "bench %s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	var o options
	var noPeer bool
	var objects, exports, feeds string
	flag.StringVar(&o.only, "only", "", "the rows to measure, by number: 1,2,7; all by default")
	flag.Float64Var(&o.scale, "scale", 1, "the share of the 10 000 objects and 10 000 virtual clusters to use, for a quick look")
	flag.StringVar(&o.vmeshBinary, "vmesh-binary", "", "the vmesh to measure; built from this checkout by default")
	flag.BoolVar(&noPeer, "no-peer", false, "measure vmesh alone")
	flag.BoolVar(&o.json, "json", false, "print JSON with all samples in place of a table")
	flag.StringVar(&o.out, "out", "", "also write the table (markdown) to this file")
	flag.StringVar(&o.profileDir, "cpuprofile-dir", "", "after the rows, run each load once more and write profiles of the servers here")
	flag.BoolVar(&o.keep, "keep", false, "keep the servers' data and logs")
	flag.StringVar(&objects, "shard-objects", "10000", "among how many objects row 18 changes one: 10000,50000")
	flag.StringVar(&exports, "shard-exports", exportedToOwn, "to whom they are exported: own,all (namespaces)")
	flag.StringVar(&feeds, "shards", "1,4,16,auto", "over how many shards row 18 has the relay spread them")
	flag.Parse()
	o.peer = !noPeer
	o.shardFeeds = strings.Split(feeds, ",")
	for text := range strings.SplitSeq(objects, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "bench: --shard-objects: %q is not a number of objects\n", text)
			os.Exit(1)
		}
		for to := range strings.SplitSeq(exports, ",") {
			if to != exportedToOwn && to != exportedToAll {
				fmt.Fprintf(os.Stderr, "bench: --shard-exports: %q is neither %s nor %s\n", to, exportedToOwn, exportedToAll)
				os.Exit(1)
			}
			o.shardLoads = append(o.shardLoads, shardLoad{n, to})
		}
	}

	debug.SetGCPercent(clientGC)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	for _, load := range o.shardLoads {
		rows = append(rows, load.rows(o.shardFeeds)...)
	}
	only, err := parseRows(o.only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vmesh-bench-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "data and logs:", dir)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	b := &bench{options: o, only: only, dir: dir, begun: time.Now(), machine: describeMachine(), results: results{}}
	// What was measured before a failure is worth having.
	err = b.run(ctx)
	return errors.Join(err, b.report())
}

func (b *bench) report() error {
	table := b.machine + "\n\n" + b.results.markdown()
	if b.options.out != "" {
		if err := os.WriteFile(b.options.out, []byte(table), 0o644); err != nil {
			return err
		}
	}
	if b.options.json {
		return b.results.writeJSON(os.Stdout)
	}
	_, err := fmt.Print(table)
	return err
}
