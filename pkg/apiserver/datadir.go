package apiserver

import (
	"errors"
	"fmt"

	"github.com/vmesh-io/vmesh/pkg/dirlock"
)

// openDataDir makes the data directory and takes hold of it until release is called or
// the process ends. Another server would write its own address into the kubeconfigs here.
func openDataDir(dir string) (release func(), err error) {
	lock, err := dirlock.Acquire(dir)
	switch {
	case errors.Is(err, dirlock.ErrInUse):
		return nil, fmt.Errorf("--data-dir: %s is in use by another vmesh server: stop that first, or give another directory", dir)
	case err != nil:
		return nil, fmt.Errorf("--data-dir: %w: give a directory that this user can write", err)
	}
	return func() { _ = lock.Release() }, nil
}
