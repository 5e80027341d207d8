package main

import (
	"bytes"
	"io"
	"os"

	"github.com/spf13/pflag"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"
	_ "k8s.io/component-base/logs/json/register" // --logging-format=json
)

// addLoggingFlags adds upstream's flags, and shows those that people use.
func addLoggingFlags(c *logsapi.LoggingConfiguration, fs *pflag.FlagSet) {
	logsapi.AddFlags(c, fs)
	fs.Lookup("v").Usage = "How much to log: with 0 what goes wrong, with 1 also what is done, and up to 10 ever more."
	for _, name := range []string{"log-flush-frequency", "log-json-info-buffer-size", "log-json-split-stream", "log-text-info-buffer-size", "log-text-split-stream"} {
		fs.Lookup(name).Hidden = true
	}
}

// applyLogging starts logging to standard error; flush writes what is still held.
func applyLogging(c *logsapi.LoggingConfiguration) (flush func(), err error) {
	streams := &logsapi.LoggingOptions{ErrorStream: os.Stderr, InfoStream: os.Stdout}
	if c.Format == logsapi.DefaultLogFormat && c.Verbosity == 0 && len(c.VModule) == 0 {
		streams.ErrorStream = quiet{os.Stderr}
	}
	if err := logsapi.ValidateAndApplyWithOptions(c, streams, nil); err != nil {
		return nil, err
	}
	return logs.FlushLogs, nil
}

// quiet drops what the libraries tell of themselves at level 0, as every API group that
// is added, or that what was told to end has ended: whoever starts a server wants to see what to type next, and what goes wrong.
type quiet struct{ io.Writer }

var (
	// etcdWarning marks the warnings of the embedded etcd, which come as information.
	etcdWarning = []byte(` logger="etcd" `)
	// endedWatch is what each watch of etcd calls an error when the server stops.
	endedWatch = []byte("] failed to sync with latest state: context canceled")
)

// Write implements io.Writer. The first byte of a message in text form is its severity.
func (q quiet) Write(message []byte) (int, error) {
	information := len(message) > 0 && message[0] == 'I' && !bytes.Contains(message, etcdWarning)
	if information || bytes.Contains(message, endedWatch) {
		return len(message), nil
	}
	return q.Writer.Write(message)
}
