package embedded

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
)

// newLogger hands etcd's warnings and errors on, and its fatal messages to the hook.
func newLogger(to klog.Logger, fatal *fatalHook) *zap.Logger {
	return zap.New(&core{to: to}, zap.WithFatalHook(fatal), zap.WithPanicHook(fatal))
}

// core is a zapcore.Core that writes to a logr sink.
type core struct {
	to     klog.Logger
	fields []zapcore.Field
}

func (c *core) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{to: c.to, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

// expected is what etcd warns of on every first start of a single member: the
// directory's mode, when only what is below it is private, and a storage version
// that nothing has written yet.
var expected = map[string]bool{
	"check file permission":            true,
	"Failed to detect schema version":  true,
	"failed to update storage version": true,
}

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	// Raft warns of elections, which a single member holds with itself.
	election := e.LoggerName == "raft" && e.Level < zapcore.ErrorLevel
	if c.Enabled(e.Level) && !expected[e.Message] && !election {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(values)
	}
	for _, f := range fields {
		f.AddTo(values)
	}
	kv := make([]any, 0, 2*len(values.Fields))
	for k, v := range values.Fields {
		kv = append(kv, k, v)
	}
	if e.Level == zapcore.WarnLevel {
		c.to.Info(e.Message, kv...)
	} else {
		c.to.Error(nil, e.Message, kv...)
	}
	return nil
}

func (c *core) Sync() error { return nil }

// fatalHook stands in for etcd's ending of the process: the goroutine that cannot go
// on ends, which leaves every write that it has not acknowledged unacknowledged, and
// the error is reported.
type fatalHook struct {
	starting atomic.Bool
	dead     atomic.Bool
	failed   chan error
}

func newFatalHook() *fatalHook { return &fatalHook{failed: make(chan error, 1)} }

func (h *fatalHook) happened() bool { return h.dead.Load() }

// OnWrite implements zapcore.CheckWriteHook. It does not return.
func (h *fatalHook) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := describe(ce.Entry, fields)
	if h.starting.Load() || ce.Level == zapcore.PanicLevel {
		panic(err)
	}
	h.dead.Store(true)
	select {
	case h.failed <- err:
	default:
	}
	runtime.Goexit()
}

func describe(e zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	var b strings.Builder
	b.WriteString(e.Message)
	for _, f := range fields {
		f.AddTo(values)
		fmt.Fprintf(&b, ", %s: %v", f.Key, values.Fields[f.Key])
	}
	return fmt.Errorf("etcd: %s", b.String())
}
