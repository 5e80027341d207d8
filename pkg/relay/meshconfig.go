package relay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/vmesh-io/vmesh/pkg/pki"
)

// ErrNoShards says that auto has not chosen yet.
var ErrNoShards = errors.New("the number of shards has not been chosen yet: start the relay, or give --shards a number")

const shardsFile = "shards.json"

// choice is how many shards istiod was told of.
type choice struct {
	Shards    int `json:"shards"`
	Resources int `json:"resources"`
	// Loopback is where: the istiod that was told runs no longer where there is another.
	Loopback string `json:"loopback,omitempty"`
}

// loopback names the network namespace that this process is in, and with it all who can reach its
// loopback addresses: another boot, or pod, has another. It is empty where there is no telling.
func loopback() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	namespace, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + " " + namespace
}

// shardsToServe is how many shards there are to be, or 0 when that is to be chosen: when it never
// was, and when no istiod can be there that was told of what was chosen.
func shardsToServe(o *Options) (int, error) {
	c, err := chosenShards(o)
	if here := loopback(); err != nil || o.Shards == autoShardsFlag && c.Loopback != "" && here != "" && c.Loopback != here {
		return 0, err
	}
	return c.Shards, nil
}

// chosenShards is what was chosen: no shards when nothing was.
func chosenShards(o *Options) (choice, error) {
	if o.Shards != autoShardsFlag {
		n, err := strconv.Atoi(o.Shards)
		return choice{Shards: n}, err
	}
	name := filepath.Join(o.CacheDir, shardsFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return choice{}, nil
	}
	var c choice
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err == nil && (c.Shards < 1 || c.Shards > maxShards) {
		err = fmt.Errorf("%d is no number of shards", c.Shards)
	}
	if err != nil {
		return choice{}, fmt.Errorf("%s: %w: istiod was told of a number of shards that cannot be read: give --shards the number of configSources that it was started with, or delete the file and restart istiod too", name, err)
	}
	return c, nil
}

func keepShards(o *Options, shards, resources int) error {
	data, err := json.Marshal(choice{shards, resources, loopback()})
	if err != nil {
		return err
	}
	if err := pki.WriteFile(filepath.Join(o.CacheDir, shardsFile), append(data, '\n'), 0o600); err != nil {
		return err
	}
	return syncDir(o.CacheDir)
}

// MeshConfig is istiod's mesh configuration with the relay's shards as its sources. It is
// ErrNoShards when there is no telling how many they are.
func MeshConfig(o *Options) ([]byte, error) {
	c, err := chosenShards(o)
	if err != nil {
		return nil, err
	}
	if c.Shards == 0 {
		return nil, ErrNoShards
	}
	return meshConfig(o, c.Shards)
}

func meshConfig(o *Options, shards int) ([]byte, error) {
	config := map[string]any{}
	if o.MeshConfig != "" {
		data, err := os.ReadFile(o.MeshConfig)
		if err == nil {
			err = yaml.Unmarshal(data, &config)
		}
		if err != nil {
			return nil, fmt.Errorf("--mesh-config: %s: %w", o.MeshConfig, err)
		}
	}
	var sources []any
	for i := range shards {
		sources = append(sources, map[string]any{"address": "xds://" + o.address(i)})
	}
	config["configSources"] = sources
	return yaml.Marshal(config)
}

func writeMeshConfig(o *Options, shards int) error {
	if o.WriteMeshConfig == "" {
		return nil
	}
	data, err := meshConfig(o, shards)
	if err != nil {
		return err
	}
	// istiod is another user.
	if err := pki.WriteFile(o.WriteMeshConfig, data, 0o644); err != nil {
		return fmt.Errorf("--write-mesh-config: %w", err)
	}
	return nil
}
