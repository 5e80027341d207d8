// Package dirlock keeps a directory to one process.
package dirlock

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// ErrInUse is the error of Acquire when another process holds the directory.
var ErrInUse = errors.New("the directory is in use by another process")

// Lock is a directory that this process holds, at the latest until it ends.
type Lock struct{ file *os.File }

// Acquire makes the directory, for its owner alone, and takes hold of it. It does not wait.
func Acquire(dir string) (*Lock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(err, file.Close())
	}
	return &Lock{file}, nil
}

// Release lets another process have the directory.
func (l *Lock) Release() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("releasing the directory: %w", err)
	}
	return nil
}
