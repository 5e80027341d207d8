package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.uber.org/zap"

	"github.com/vmesh-io/vmesh/pkg/dirlock"
)

// ErrInUse is part of the error of Start when another process has the directory open.
var ErrInUse = dirlock.ErrInUse

// openDir creates the directory, locks it, and finds what would make etcd hang or
// end the process.
func openDir(dir string) (*dirlock.Lock, error) {
	l, err := dirlock.Acquire(dir)
	if err != nil {
		return nil, fmt.Errorf("taking hold of the directory: %w", err)
	}
	if err := checkDatabase(filepath.Join(dir, "member", "snap", "db")); err != nil {
		return nil, errors.Join(err, l.Release())
	}
	if err := dropUnborn(filepath.Join(dir, "member")); err != nil {
		return nil, errors.Join(err, l.Release())
	}
	return l, nil
}

// dropUnborn removes what a first start left behind that was cut off between making its
// log and writing who the member is into it. A server of such a log has no members,
// itself not either, and waits for a leader for ever. Nothing was ever acknowledged in
// it: a log with a single entry, and one that cannot be read, is let alone.
func dropUnborn(member string) error {
	dir := filepath.Join(member, "wal")
	snapshots, err := filepath.Glob(filepath.Join(member, "snap", "*.snap"))
	if err != nil || len(snapshots) > 0 || !wal.Exist(dir) {
		return err // it has lived: without a snapshot, the log is short
	}
	log, err := wal.OpenForRead(zap.NewNop(), dir, &walpb.Snapshot{Index: new(uint64), Term: new(uint64)})
	if err != nil {
		return nil // the server will say what is wrong with it
	}
	_, state, entries, err := log.ReadAll()
	_ = log.Close() // open for reading it has no directory to close, and complains of that
	if err != nil || len(entries) > 0 || state.GetTerm() > 0 || state.GetCommit() > 0 {
		return nil
	}
	if err := os.RemoveAll(member); err != nil {
		return fmt.Errorf("removing what a first start that was cut off left behind: %w", err)
	}
	return nil
}

// checkDatabase opens the database as etcd will: etcd waits for ever for a lock that
// a foreign etcd holds, and panics, where no one can recover, on a file that is none.
func checkDatabase(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Millisecond})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return ErrInUse
	case err != nil:
		return fmt.Errorf("reading the database %s: %w", path, err)
	}
	if err := db.Close(); err != nil {
		return fmt.Errorf("closing the database %s: %w", path, err)
	}
	return nil
}
