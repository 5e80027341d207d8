package xds

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/vmesh-io/vmesh/pkg/apis/object"
)

// benchClients, set to an address and a number, makes the test binary a process of
// light clients, so that the CPU of the benchmark's own process is the server's.
const benchClients = "VMESH_BENCH_CLIENTS"

// lightCodec takes the nonce out of a response and leaves the rest alone.
type lightCodec struct{ codec }

type lightResponse struct{ nonce string }

func (c lightCodec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*lightResponse)
	if !ok {
		return c.codec.Unmarshal(data, v)
	}
	// The nonce comes before the resources.
	head := make([]byte, min(256, data.Len()))
	data.CopyTo(head)
	for len(head) > 0 {
		field, _, n := protowire.ConsumeTag(head)
		value, m := protowire.ConsumeBytes(head[n:])
		if field == responseNonce {
			r.nonce = string(value)
			return nil
		}
		head = head[n+m:]
	}
	return fmt.Errorf("no nonce")
}

// TestBenchClients is no test but what the child process does: it prints a line for
// each response, when it was received.
func TestBenchClients(t *testing.T) {
	config := os.Getenv(benchClients)
	if config == "" {
		t.Skip("it is for benchmarks")
	}
	var address, protocol string
	var clients int
	if _, err := fmt.Sscan(config, &address, &protocol, &clients); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	for range clients {
		conn, err := grpc.NewClient("passthrough:///"+address,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<20), // as istiod
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.ForceCodecV2(lightCodec{newCodec()})))
		if err != nil {
			t.Fatal(err)
		}
		service := discovery.NewAggregatedDiscoveryServiceClient(conn)
		var stream grpc.ClientStream
		var ack func(nonce string) any
		if protocol == "delta" {
			stream, err = service.DeltaAggregatedResources(context.Background())
			ack = func(nonce string) any {
				return &discovery.DeltaDiscoveryRequest{TypeUrl: virtualServices, Node: node("light"), ResponseNonce: nonce}
			}
		} else {
			stream, err = service.StreamAggregatedResources(context.Background())
			ack = func(nonce string) any {
				return &discovery.DiscoveryRequest{TypeUrl: virtualServices, Node: node("light"), ResponseNonce: nonce}
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(ack("")); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				var r lightResponse
				if err := stream.RecvMsg(&r); err != nil {
					close(lines)
					return
				}
				lines <- fmt.Sprint("received ", time.Now().UnixNano())
				if err := stream.SendMsg(ack(r.nonce)); err != nil {
					close(lines)
					return
				}
			}
		}()
	}
	for line := range lines {
		fmt.Println(line)
	}
}

// BenchmarkPush measures the way of one change to clients in another process, from
// what the storage tells to the whole response, and this process' CPU for it.
func BenchmarkPush(b *testing.B) {
	for _, size := range []struct {
		protocol         string
		objects, clients int
	}{{"sotw", 1000, 1}, {"sotw", 10_000, 1}, {"sotw", 10_000, 10}, {"delta", 10_000, 1}, {"delta", 10_000, 100}} {
		b.Run(fmt.Sprintf("%s/objects=%d/clients=%d", size.protocol, size.objects, size.clients), func(b *testing.B) {
			w := newWorld(b, textKinds(), Options{}).start(map[string][]*object.Object{"virtualservices": manyObjects(size.objects)})
			cmd := exec.Command(os.Args[0], "-test.run=^TestBenchClients$", "-test.v=false")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", benchClients, w.address, size.protocol, size.clients))
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_, _ = io.Copy(io.Discard, out)
				_ = cmd.Wait()
			}()
			lines := bufio.NewScanner(out)
			next := func() time.Time {
				for lines.Scan() {
					if text, ok := strings.CutPrefix(lines.Text(), "received "); ok {
						var at int64
						if _, err := fmt.Sscan(text, &at); err != nil {
							b.Fatal(err)
						}
						return time.Unix(0, at)
					}
				}
				b.Fatalf("the clients have ended: %v", lines.Err())
				return time.Time{}
			}
			for range size.clients {
				next()
			}
			var latencies, slowest []time.Duration
			i, marshalled := 0, w.counter("vmesh_snapshot_entries_marshalled_total", nil)
			before := cpuTime(b)
			b.ReportAllocs()
			for b.Loop() {
				i++
				start := time.Now()
				w.set("ns-7/vs-7", fmt.Sprint(i))
				var last time.Time
				for range size.clients {
					received := next()
					latencies = append(latencies, received.Sub(start))
					if received.After(last) {
						last = received
					}
				}
				slowest = append(slowest, last.Sub(start))
			}
			cpu := cpuTime(b) - before
			slices.Sort(latencies)
			slices.Sort(slowest)
			b.ReportMetric(float64(latencies[len(latencies)/2].Microseconds())/1000, "ms-p50")
			b.ReportMetric(float64(slowest[len(slowest)/2].Microseconds())/1000, "ms-last-p50")
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(i), "ms-cpu/op")
			b.ReportMetric((w.counter("vmesh_snapshot_entries_marshalled_total", nil)-marshalled)/float64(i), "marshalled/op")
		})
	}
}

func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
