package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/klog/v2"
)

// DefaultDebugURL is where an istiod answers its debug pages, to whom is on the same
// loopback without credentials.
const DefaultDebugURL = "http://127.0.0.1:15014"

const (
	// proxiesTimeout bounds one observation, and maxProxiesBytes what istiod may answer: a
	// proxy takes about a kilobyte.
	proxiesTimeout  = 10 * time.Second
	maxProxiesBytes = 64 << 20

	// An observation takes istiod's time and the relay's, so that the next one waits for
	// proxiesShare times as long, within bounds.
	proxiesShare      = 50
	minProxiesEvery   = 2 * time.Second
	maxProxiesEvery   = time.Minute
	proxiesRetryAfter = 30 * time.Second

	// settleAfter is how long istiod may take before it begins to send what it has
	// acknowledged: it waits for more changes, 0.1 s by default.
	settleAfter = 2 * time.Second
	// pushQuiet is how long nothing must have been sent to a proxy, and to all but one in
	// pushFew proxies, for istiod to be done with them.
	pushQuiet = time.Second
	pushFew   = 100
	// sendQuiet is the same for a proxy that was sent something: its kinds are sent one
	// after the other.
	sendQuiet = 100 * time.Millisecond

	endpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
)

// Proxies is what an istiod tells of its proxies.
type Proxies struct {
	// Connected is how many are connected.
	Connected int
	// Synced is how many of them have acknowledged all that istiod has sent since it
	// acknowledged a configuration. Those that it has nothing for count once it has had the
	// time to send.
	Synced int
	// ObservedAt is when it was asked.
	ObservedAt time.Time
}

// Poller asks an istiod on the same loopback about its proxies. It is not safe for
// concurrent use.
type Poller struct {
	client *http.Client
	url    string
	most   int64 // bytes of an answer
	took   time.Duration
}

// NewPoller makes a poller of the istiod whose debug pages are at a URL, as
// DefaultDebugURL.
func NewPoller(debugURL string) (*Poller, error) {
	u, err := url.Parse(debugURL)
	if err != nil || u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("%q is not http://ADDRESS:PORT, as in %s", debugURL, DefaultDebugURL)
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%q is not on loopback: istiod answers its debug pages without credentials there only", debugURL)
	}
	return &Poller{
		// Connections are not kept: between two observations istiod may be another.
		client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: proxiesTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		url:    "http://" + u.Host + "/debug/syncz",
		most:   maxProxiesBytes,
	}, nil
}

// Observe asks istiod, which acknowledged at since the configuration that it is about.
func (p *Poller) Observe(ctx context.Context, since time.Time) (Proxies, error) {
	begun := time.Now()
	defer func() { p.took = time.Since(begun) }()
	ctx, cancel := context.WithTimeout(ctx, proxiesTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return Proxies{}, err
	}
	response, err := p.client.Do(request)
	if err != nil {
		return Proxies{}, fmt.Errorf("asking istiod about its proxies: %w", err)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return Proxies{}, fmt.Errorf("asking istiod about its proxies: it has no %s: is it started with ENABLE_DEBUG_ON_HTTP=false?", p.url)
	default:
		return Proxies{}, fmt.Errorf("asking istiod about its proxies: %s answers %s", p.url, response.Status)
	}
	proxies, err := countProxies(io.LimitReader(response.Body, p.most), since, time.Now())
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("it ends in the middle, or is larger than %d bytes", p.most)
	}
	if err != nil {
		return Proxies{}, fmt.Errorf("reading what istiod says of its proxies: %w", err)
	}
	return proxies, nil
}

// Interval is how long to wait for the next observation, so that all of them together take
// one part in fifty of the time at most.
func (p *Poller) Interval() time.Duration {
	return min(max(p.took*proxiesShare, minProxiesEvery), maxProxiesEvery)
}

// Run observes until ctx ends. acked says which version istiod has acknowledged last, and
// when; none is observed as long as it is empty. report is told what was observed of which
// version.
func (p *Poller) Run(ctx context.Context, acked func() (version string, at time.Time), report func(version string, proxies Proxies)) {
	failing := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		version, at := acked()
		if version == "" {
			timer.Reset(minProxiesEvery)
			continue
		}
		proxies, err := p.Observe(ctx, at)
		if err != nil {
			if !failing && ctx.Err() == nil {
				klog.FromContext(ctx).Error(err, "Proxies are not reported until this works")
			}
			failing = true
			timer.Reset(proxiesRetryAfter)
			continue
		}
		failing = false
		report(version, proxies)
		timer.Reset(p.Interval())
	}
}

// ProxiesRequest is what tells vmesh about proxies. It may follow any other request on a
// delta stream, and is not answered.
func ProxiesRequest(version string, p Proxies) *discovery.DeltaDiscoveryRequest {
	return &discovery.DeltaDiscoveryRequest{
		TypeUrl: "vmesh.io/v1alpha1/Proxies",
		Node: &core.Node{Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"VMESH_PROXIES": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"connected":  structpb.NewNumberValue(float64(p.Connected)),
			"synced":     structpb.NewNumberValue(float64(p.Synced)),
			"version":    structpb.NewStringValue(version),
			"observedAt": structpb.NewStringValue(p.ObservedAt.UTC().Format(time.RFC3339)),
		}})}}},
	}
}

// syncStatus is what istiod tells of one proxy. Older versions have only the members
// of single types.
type syncStatus struct {
	Resources map[string]struct {
		Sent      string    `json:"sent"`
		Acked     string    `json:"acked"`
		SentTime  time.Time `json:"sentTime"`
		LastError string    `json:"lastError"`
	} `json:"resources"`

	ClusterSent    string `json:"cluster_sent"`
	ClusterAcked   string `json:"cluster_acked"`
	ListenerSent   string `json:"listener_sent"`
	ListenerAcked  string `json:"listener_acked"`
	RouteSent      string `json:"route_sent"`
	RouteAcked     string `json:"route_acked"`
	EndpointSent   string `json:"endpoint_sent"`
	EndpointAcked  string `json:"endpoint_acked"`
	ExtensionSent  string `json:"extensionconfig_sent"`
	ExtensionAcked string `json:"extensionconfig_acked"`
}

// acknowledged says whether a proxy has acknowledged all that it was sent. last is when that
// was, and pushed the same without endpoints, which change by themselves.
func (s *syncStatus) acknowledged() (acknowledged bool, last, pushed time.Time) {
	acknowledged = s.ClusterSent == s.ClusterAcked && s.ListenerSent == s.ListenerAcked && s.RouteSent == s.RouteAcked &&
		s.EndpointSent == s.EndpointAcked && s.ExtensionSent == s.ExtensionAcked
	for url, r := range s.Resources {
		if r.Sent != r.Acked || r.LastError != "" {
			acknowledged = false
		}
		if r.SentTime.After(last) {
			last = r.SentTime
		}
		if url != endpointType && r.SentTime.After(pushed) {
			pushed = r.SentTime
		}
	}
	return acknowledged, last, pushed
}

// countProxies reads istiod's answer, of which it holds one proxy at a time.
func countProxies(r io.Reader, since, now time.Time) (Proxies, error) {
	proxies := Proxies{ObservedAt: now}
	decoder := json.NewDecoder(r)
	fail := func(err error) (Proxies, error) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Proxies{}, err
	}
	if token, err := decoder.Token(); err != nil {
		return fail(err)
	} else if token != json.Delim('[') {
		return fail(errors.New("it is not a list"))
	}
	idle, pushing := 0, 0
	for decoder.More() {
		var s syncStatus
		if err := decoder.Decode(&s); err != nil {
			return fail(err)
		}
		proxies.Connected++
		acknowledged, last, pushed := s.acknowledged()
		if now.Sub(pushed) < pushQuiet {
			pushing++
		}
		switch {
		case !acknowledged || now.Sub(last) < sendQuiet:
		case last.Before(since):
			idle++ // it was sent nothing, perhaps not yet
		default:
			proxies.Synced++
		}
	}
	if _, err := decoder.Token(); err != nil {
		return fail(err)
	}
	if now.Sub(since) >= settleAfter && pushing <= proxies.Connected/pushFew {
		proxies.Synced += idle
	}
	return proxies, nil
}
