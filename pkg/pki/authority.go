package pki

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/utils/clock"
)

const (
	// AuthorityLifetime is how long an authority is good unless it is said otherwise.
	AuthorityLifetime = 10 * 365 * 24 * time.Hour
	// An authority is followed by another when a fifth of its life is left. That signs from
	// when a tenth is left on: until then everyone has time to learn that it is trusted.
	followedAt, handsOverAt = 5, 10
	// clockSkew is how far into the past certificates are valid, for clients whose clocks are behind.
	clockSkew = 5 * time.Minute
)

// Authority signs certificates. Before it ends it is followed by another one, which is
// trusted at once and signs later; it is trusted until its own end. All that is kept is
// in two files: NAME.crt has the certificates that are trusted, NAME.key the keys of
// those that sign. A certificate without a key is trusted and does not sign; one that
// is not valid yet, but for the allowance for slow clocks, does not sign yet. Methods
// are safe for concurrent use.
type Authority struct {
	AuthorityConfig
	mu    sync.Mutex // of who reads and writes the files
	files [2][]byte  // as they were read last
	state atomic.Pointer[authorityState]
}

// AuthorityConfig is where an authority is kept, and how it lives.
type AuthorityConfig struct {
	Dir, Name string
	// Lifetime is how long a new one is good; AuthorityLifetime when 0.
	Lifetime time.Duration
	// Clock is the time of day; the system's when nil.
	Clock clock.PassiveClock
}

type authorityState struct {
	members []member // the one that signs last is first
	bundle  []byte
	pool    *x509.CertPool
}

// member is one generation of an authority.
type member struct {
	cert *x509.Certificate
	key  crypto.Signer // nil when it does not sign
}

// begins is when it begins to sign.
func (m member) begins() time.Time { return m.cert.NotBefore.Add(clockSkew) }

func (m member) life() time.Duration { return m.cert.NotAfter.Sub(m.begins()) }

// LoadOrCreateAuthority opens an authority that lives as long as is usual.
func LoadOrCreateAuthority(dir, name string) (*Authority, error) {
	return OpenAuthority(AuthorityConfig{Dir: dir, Name: name})
}

// OpenAuthority reads an authority from its files, or makes it there when there are
// none, and does what is due.
func OpenAuthority(c AuthorityConfig) (*Authority, error) {
	if c.Lifetime == 0 {
		c.Lifetime = AuthorityLifetime
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	a := &Authority{AuthorityConfig: c}
	certFile, keyFile := a.paths()
	if !exists(certFile) && !exists(keyFile) {
		if err := a.change(func(members []member) ([]member, error) {
			if len(members) > 0 {
				return members, nil // another process was first
			}
			first, err := a.generate(a.Clock.Now())
			return []member{first}, err
		}); err != nil {
			return nil, err
		}
	}
	_, err := a.Maintain()
	return a, err
}

func (a *Authority) paths() (certFile, keyFile string) {
	return filepath.Join(a.Dir, a.Name+".crt"), filepath.Join(a.Dir, a.Name+".key")
}

// Generation tells of one of an authority's certificates.
type Generation struct {
	// Subject is its name.
	Subject string
	// Signs is from when on it signs, until a later one does; zero when it never does.
	Signs time.Time
	// Expires is until when it is trusted.
	Expires time.Time
	// Signing says that it is the one that signs now.
	Signing bool
}

// Generations are the authority's certificates, the latest first.
func (a *Authority) Generations() []Generation {
	members := a.state.Load().members
	signer, err := a.signer()
	all := make([]Generation, 0, len(members))
	for _, m := range members {
		g := Generation{Subject: m.cert.Subject.CommonName, Expires: m.cert.NotAfter, Signing: err == nil && m.cert.Equal(signer.cert)}
		if m.key != nil {
			g.Signs = m.begins()
		}
		all = append(all, g)
	}
	return all
}

// Bundle is all that is trusted, in PEM form, for who checks what the authority signs.
func (a *Authority) Bundle() []byte { return a.state.Load().bundle }

// Pool is all that is trusted. It must not be changed.
func (a *Authority) Pool() *x509.CertPool { return a.state.Load().pool }

// Expires is the end of the one that signs now.
func (a *Authority) Expires() time.Time {
	m, err := a.signer()
	if err != nil {
		return time.Time{}
	}
	return m.cert.NotAfter
}

// signer is the latest that has begun and not ended. Without one, it is the next to begin.
func (a *Authority) signer() (member, error) {
	now := a.Clock.Now()
	var next member
	for _, m := range a.state.Load().members {
		if m.key == nil || !now.Before(m.cert.NotAfter) {
			continue
		}
		if next = m; !now.Before(m.begins()) {
			return m, nil
		}
	}
	if next.key == nil {
		return member{}, fmt.Errorf("%s has ended: nothing can be signed", a.Name)
	}
	return next, nil
}

// Maintain reads the files anew, makes the following authority when it is due, and
// drops what has ended. It says what has changed, in words for people. It is cheap when
// nothing has, and wants to be called often compared with the lifetime.
func (a *Authority) Maintain() ([]string, error) {
	changed, err := a.read()
	if err != nil {
		return nil, err
	}
	var notes []string
	if changed {
		notes = append(notes, a.Name+" was read from its files")
	}
	if !a.due() {
		return notes, nil
	}
	err = a.change(func(members []member) ([]member, error) {
		if !a.due() {
			return members, nil // another process was first
		}
		now := a.Clock.Now()
		if latest := latestOf(members); now.After(latest.cert.NotAfter.Add(-latest.life() / followedAt)) {
			begins := latest.cert.NotAfter.Add(-latest.life() / handsOverAt)
			if begins.Before(now) {
				begins = now
			}
			following, err := a.generate(begins)
			if err != nil {
				return nil, err
			}
			notes = append(notes, fmt.Sprintf("%s: %s is trusted from now on and signs from %s on; other servers on the same etcd need copies of its files before", a.Name, following.cert.Subject.CommonName, begins.UTC().Format(time.RFC3339)))
			members = slices.Insert(slices.Clone(members), 0, following)
		}
		return slices.DeleteFunc(slices.Clone(members), func(m member) bool {
			ended := now.After(m.cert.NotAfter)
			if ended {
				notes = append(notes, fmt.Sprintf("%s: %s has ended", a.Name, m.cert.Subject.CommonName))
			}
			return ended
		}), nil
	})
	return notes, err
}

// due says whether Maintain has something to write.
func (a *Authority) due() bool {
	now, members := a.Clock.Now(), a.state.Load().members
	latest := latestOf(members)
	return now.After(latest.cert.NotAfter.Add(-latest.life()/followedAt)) ||
		slices.ContainsFunc(members, func(m member) bool { return now.After(m.cert.NotAfter) })
}

// latestOf is the one that signs last; there always is one that signs.
func latestOf(members []member) member {
	return members[slices.IndexFunc(members, func(m member) bool { return m.key != nil })]
}

// Rotate makes the following authority now, whatever the age of the present one. It is
// trusted at once and signs after a while; what the present one has signed stays good.
// Several servers need the while: they all have to know the new one before it signs.
func (a *Authority) Rotate(after time.Duration) error {
	if _, err := a.read(); err != nil {
		return err
	}
	return a.change(func(members []member) ([]member, error) {
		now := a.Clock.Now()
		if latest := latestOf(members); now.Before(latest.begins()) {
			return nil, fmt.Errorf("%s is being rotated: %s signs from %s on", a.Name, latest.cert.Subject.CommonName, latest.begins().UTC().Format(time.RFC3339))
		}
		following, err := a.generate(now.Add(after))
		if err != nil {
			return nil, err
		}
		return slices.Insert(slices.Clone(members), 0, following), nil
	})
}

// Replace makes a new authority that signs at once, and trusts no other any more: what
// was signed before is refused from now on.
func (a *Authority) Replace() error {
	return a.change(func([]member) ([]member, error) {
		m, err := a.generate(a.Clock.Now())
		return []member{m}, err
	})
}

// generate makes an authority that signs from some time on.
func (a *Authority) generate(begins time.Time) (member, error) {
	key, err := newKey()
	if err != nil {
		return member{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return member{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// Each has a name of its own, by which clients find the one that signed.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("vmesh-%s-%08x", a.Name, serial.Uint64()>>32)},
		NotBefore:             begins.Add(-clockSkew),
		NotAfter:              begins.Add(a.Lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := sign(template, template, key.Public(), key)
	if err != nil {
		return member{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return member{cert, key}, err
}

// change writes what a function makes of the members, while no other process does.
func (a *Authority) change(to func([]member) ([]member, error)) error {
	lock, err := os.OpenFile(filepath.Join(a.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	certFile, keyFile := a.paths()
	var members []member
	if exists(certFile) || exists(keyFile) {
		if _, err := a.read(); err != nil {
			return err
		}
		members = a.state.Load().members
	}
	wanted, err := to(members)
	if err != nil {
		return err
	}
	wanted = newestFirst(wanted)
	kept, err := keysOf(wanted)
	if err != nil {
		return err
	}
	dropped, err := keysOf(slices.DeleteFunc(slices.Clone(members), func(m member) bool {
		return slices.ContainsFunc(wanted, func(w member) bool { return w.cert.Equal(m.cert) })
	}))
	if err != nil {
		return err
	}
	// Whoever reads in between finds keys that it has no use for, and never lacks one.
	err = errors.Join(WriteFile(keyFile, slices.Concat(kept, dropped), 0o600), WriteFile(certFile, bundleOf(wanted), 0o644))
	if err == nil && len(dropped) > 0 {
		err = WriteFile(keyFile, kept, 0o600)
	}
	if err != nil {
		return err
	}
	_, err = a.read()
	return err
}

func keysOf(members []member) ([]byte, error) {
	var all []byte
	for _, m := range members {
		if m.key == nil {
			continue
		}
		keyPEM, err := encodeKey(m.key)
		if err != nil {
			return nil, err
		}
		all = append(all, keyPEM...)
	}
	return all, nil
}

func newestFirst(members []member) []member {
	return slices.SortedStableFunc(slices.Values(members), func(x, y member) int {
		return cmp.Compare(y.cert.NotBefore.Unix(), x.cert.NotBefore.Unix())
	})
}

func bundleOf(members []member) []byte {
	var bundle []byte
	for _, m := range members {
		bundle = append(bundle, encodeCert(m.cert.Raw)...)
	}
	return bundle
}

// read reads the files. What cannot be used is an error and changes nothing.
func (a *Authority) read() (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	certFile, keyFile := a.paths()
	certPEM, keyPEM, err := readBoth(certFile, keyFile)
	if err != nil {
		return false, fmt.Errorf("reading the certificate authority: %w", err)
	}
	if a.state.Load() != nil && bytes.Equal(certPEM, a.files[0]) && bytes.Equal(keyPEM, a.files[1]) {
		return false, nil
	}
	certs, err := parseCerts(certPEM)
	if err != nil {
		return false, fmt.Errorf("%s: %w", certFile, err)
	}
	keys, err := parseKeys(keyPEM)
	if err != nil {
		return false, fmt.Errorf("%s: %w", keyFile, err)
	}
	s := &authorityState{pool: x509.NewCertPool()}
	signs := false
	for _, cert := range certs {
		m := member{cert: cert}
		if i := slices.IndexFunc(keys, func(k crypto.Signer) bool { return samePublic(k.Public(), cert.PublicKey) }); i >= 0 {
			m.key, signs = keys[i], true
		}
		s.members = append(s.members, m)
		s.pool.AddCert(cert)
	}
	if !signs {
		return false, fmt.Errorf("reading the certificate authority: no key in %s belongs to a certificate in %s", keyFile, certFile)
	}
	s.members = newestFirst(s.members)
	s.bundle = bundleOf(s.members)
	changed = a.state.Load() != nil
	a.state.Store(s)
	a.files = [2][]byte{certPEM, keyPEM}
	return changed, nil
}

// readBoth reads certificates and the keys that go with them: if the certificates are
// others after the keys were read, somebody was writing, and both are read again.
func readBoth(certFile, keyFile string) (certPEM, keyPEM []byte, err error) {
	certPEM, err = os.ReadFile(certFile)
	for err == nil {
		if keyPEM, err = os.ReadFile(keyFile); err != nil {
			break
		}
		before := certPEM
		if certPEM, err = os.ReadFile(certFile); bytes.Equal(before, certPEM) {
			break
		}
	}
	return certPEM, keyPEM, err
}

func samePublic(x, y crypto.PublicKey) bool {
	k, ok := x.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(y)
}

// crosses are certificates of the one that signs by those before it that are trusted
// still: who knows only them trusts what it signs.
func (a *Authority) crosses(signer member) ([][]byte, error) {
	var all [][]byte
	for _, m := range a.before(signer) {
		end := signer.cert.NotAfter
		if m.cert.NotAfter.Before(end) {
			end = m.cert.NotAfter
		}
		der, err := sign(&x509.Certificate{
			Subject: signer.cert.Subject, SubjectKeyId: signer.cert.SubjectKeyId, NotBefore: signer.cert.NotBefore, NotAfter: end,
			KeyUsage: signer.cert.KeyUsage, BasicConstraintsValid: true, IsCA: true,
		}, m.cert, signer.cert.PublicKey, m.key)
		if err != nil {
			return nil, err
		}
		all = append(all, der)
	}
	return all, nil
}

// before are the members that began before one, can sign, and have not ended.
func (a *Authority) before(signer member) []member {
	now := a.Clock.Now()
	var all []member
	for _, m := range a.state.Load().members {
		if m.key != nil && now.Before(m.cert.NotAfter) && m.begins().Before(signer.begins()) {
			all = append(all, m)
		}
	}
	return all
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseCerts(data []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, cert)
	}
	if len(all) == 0 {
		return nil, errors.New("it holds no certificate in PEM form")
	}
	return all, nil
}

func parseKeys(data []byte) ([]crypto.Signer, error) {
	var all []crypto.Signer
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a %T cannot sign", key)
		}
		all = append(all, signer)
	}
	if len(all) == 0 {
		return nil, errors.New("it holds no private key in PEM form")
	}
	return all, nil
}

// ReadAuthority reads an authority's certificates and changes nothing.
func ReadAuthority(dir, name string) ([]Generation, error) {
	a := &Authority{AuthorityConfig: AuthorityConfig{Dir: dir, Name: name, Clock: clock.RealClock{}}}
	if _, err := a.read(); err != nil {
		return nil, err
	}
	return a.Generations(), nil
}
