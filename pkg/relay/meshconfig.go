package relay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

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
}

// chosenShards is how many shards there are to be, or 0 when that is to be chosen.
func chosenShards(o *Options) (int, error) {
	if o.Shards != autoShardsFlag {
		return strconv.Atoi(o.Shards)
	}
	name := filepath.Join(o.CacheDir, shardsFile)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	var c choice
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err == nil && (c.Shards < 1 || c.Shards > maxShards) {
		err = fmt.Errorf("%d is no number of shards", c.Shards)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w: istiod was told of a number of shards that cannot be read: give --shards the number of configSources that it was started with, or delete the file and restart istiod too", name, err)
	}
	return c.Shards, nil
}

func keepShards(o *Options, shards, resources int) error {
	data, err := json.Marshal(choice{shards, resources})
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
	shards, err := chosenShards(o)
	if err != nil {
		return nil, err
	}
	if shards == 0 {
		return nil, ErrNoShards
	}
	return meshConfig(o, shards)
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
