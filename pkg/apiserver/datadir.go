package apiserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// openDataDir makes the data directory and takes hold of it until release is called or
// the process ends. Another server would write its own address into the kubeconfigs here.
func openDataDir(dir string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: %w: give a directory that this user can write", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %w: give a directory that this user can write", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("%s is in use by another vmesh server: stop that first, or give another directory", dir)
		}
		return nil, errors.Join(fmt.Errorf("--data-dir: %w", err), file.Close())
	}
	return func() { _ = file.Close() }, nil
}
