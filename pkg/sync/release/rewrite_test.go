package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/vmesh-io/vmesh/pkg/storage/logical"
)

// keyed stands for an encryption: it marks values with the first of its keys, and reads all.
type keyed []string

func (k keyed) TransformToStorage(_ context.Context, data []byte, at value.Context) ([]byte, error) {
	return fmt.Appendf(nil, "%s|%s|%s", k[0], at.AuthenticatedData(), data), nil
}

func (k keyed) TransformFromStorage(_ context.Context, data []byte, at value.Context) ([]byte, bool, error) {
	parts := bytes.SplitN(data, []byte("|"), 3)
	if len(parts) < 3 || !slices.Contains(k, string(parts[0])) || string(parts[1]) != string(at.AuthenticatedData()) {
		return nil, false, fmt.Errorf("%w: no key for it", logical.ErrCorrupt)
	}
	return parts[2], string(parts[0]) != k[0], nil
}

func TestARewritingEncryptsWhatStagesHaveAnew(t *testing.T) {
	client := startEtcd(t)
	kinds := testKinds()
	with := func(keys ...string) *Store {
		return NewStore(client, "/registry-releases", kinds, func(schema.GroupResource) value.Transformer { return keyed(keys) })
	}
	old := with("one")
	put := func(key string, kind int, text string) {
		t.Helper()
		op, err := old.op(t.Context(), write{key: key, kind: kind, value: []byte(text), present: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Do(t.Context(), op); err != nil {
			t.Fatal(err)
		}
	}
	for _, uid := range []string{"u1", "u2"} {
		for i := range rewritePage {
			put(old.baseKey(uid)+fmt.Sprintf("Apple/n/a%03d", i), 0, fmt.Sprint(i))
		}
		put(old.logKey(uid, 7)+"Pear/n/p", 1, "x")
		put(old.logKey(uid, 7)+"Pear/n/absent", 1, "")
	}
	for key, data := range map[string]string{"/registry-releases/state/u1": `{}`, "/registry-releases/data/u1/base/Quince/n/q": "another|version's|value", "/registry-releasesX": "x"} {
		if _, err := client.Put(t.Context(), key, data); err != nil {
			t.Fatal(err)
		}
	}
	moved := old.baseKey("u1") + "Apple/n/b"
	if _, err := client.Put(t.Context(), moved, "one|elsewhere|x"); err != nil {
		t.Fatal(err)
	}
	now := with("two", "one")
	const entries = 2*(rewritePage+2) + 1
	if n, err := now.CountRewrite(t.Context(), nil); n != entries || err != nil {
		t.Errorf("CountRewrite = %d, %v", n, err)
	}
	pears := []schema.GroupResource{kinds[1].Resource}
	if n, err := now.CountRewrite(t.Context(), pears); n != 4 || err != nil {
		t.Errorf("CountRewrite of pears = %d, %v", n, err)
	}
	if done, err := now.Rewrite(t.Context(), logical.Rewrite{Resources: pears}); err != nil || done.Rewritten != 2 || done.Current != 2 || done.Next != "" {
		t.Errorf("pears: %+v, %v", done, err)
	}
	var sum logical.Rewritten
	parts := 0
	for from := ""; parts == 0 || from != ""; parts++ {
		done, err := now.Rewrite(t.Context(), logical.Rewrite{From: from, Limit: 30})
		if err != nil {
			t.Fatal(err)
		}
		if n := done.Rewritten + done.Current + len(done.Unreadable); n > 30 {
			t.Fatalf("a part of %d", n)
		}
		sum.Rewritten, sum.Current, sum.Unreadable = sum.Rewritten+done.Rewritten, sum.Current+done.Current, append(sum.Unreadable, done.Unreadable...)
		from = done.Next
	}
	if parts != entries/30+1 || sum.Rewritten != 2*rewritePage || sum.Current != 4 {
		t.Errorf("in %d parts: %+v", parts, sum)
	}
	if len(sum.Unreadable) != 1 || sum.Unreadable[0].Object != "base/Apple/n/b" || !strings.Contains(sum.Unreadable[0].Reason, "mesh with UID u1") {
		t.Errorf("unreadable: %+v", sum.Unreadable)
	}
	if _, err := client.Delete(t.Context(), moved); err != nil {
		t.Fatal(err)
	}
	// The old key is not needed any more, and nothing else was touched.
	if _, err := client.Delete(t.Context(), "/registry-releases/data/u1/base/Quince/n/q", clientv3.WithPrevKV()); err != nil {
		t.Fatal(err)
	}
	for _, uid := range []string{"u1", "u2"} {
		base, err := with("two").base(t.Context(), uid, 0)
		if err != nil || len(base[0]) != rewritePage || string(base[0]["n/a007"]) != "7" {
			t.Errorf("the base of %s: %d, %v", uid, len(base[0]), err)
		}
		logs, err := with("two").log(t.Context(), uid, 0)
		if err != nil || len(logs) != 2 || logs[0].key.name != "n/absent" || len(logs[0].value) != 0 || string(logs[1].value) != "x" {
			t.Errorf("the log of %s: %v, %v", uid, logs, err)
		}
	}
	if done, err := NewStore(client, "/registry-releases", kinds, nil).Rewrite(t.Context(), logical.Rewrite{}); err != nil || done.Rewritten != 0 {
		t.Errorf("without encryption: %+v, %v", done, err)
	}
}

// racing is an encryption during whose use others write.
type racing struct {
	keyed
	meanwhile func()
}

func (r racing) TransformToStorage(ctx context.Context, data []byte, at value.Context) ([]byte, error) {
	r.meanwhile()
	return r.keyed.TransformToStorage(ctx, data, at)
}

func TestARewritingUndoesNothingThatOthersDoMeanwhile(t *testing.T) {
	client := startEtcd(t)
	const key = "/registry-releases/data/u/base/Apple/n/a"
	for _, test := range []struct {
		name      string
		meanwhile func(t *testing.T)
		want      string
		err       bool
	}{
		{"nothing", func(*testing.T) {}, "two|" + key + "|old", false},
		{"it is deleted", func(t *testing.T) { _, _ = client.Delete(t.Context(), key) }, "", false},
		{"it is written", func(t *testing.T) { _, _ = client.Put(t.Context(), key, "two|"+key+"|new") }, "two|" + key + "|new", false},
		{"it is written with the old key again and again", func(t *testing.T) { _, _ = client.Put(t.Context(), key, "one|"+key+"|new") }, "one|" + key + "|new", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := client.Put(t.Context(), key, "one|"+key+"|old"); err != nil {
				t.Fatal(err)
			}
			s := NewStore(client, "/registry-releases", testKinds(), func(schema.GroupResource) value.Transformer {
				return racing{keyed{"two", "one"}, func() { test.meanwhile(t) }}
			})
			_, err := s.Rewrite(t.Context(), logical.Rewrite{})
			if (err != nil) != test.err || errors.Is(err, logical.ErrCorrupt) {
				t.Errorf("Rewrite: %v", err)
			}
			r, err := client.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if len(r.Kvs) > 0 {
				got = string(r.Kvs[0].Value)
			}
			if got != test.want {
				t.Errorf("it is %q, want %q", got, test.want)
			}
		})
	}
}
