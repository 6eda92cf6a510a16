// Package certs owns the certificate that the Postgres front door shows: the operator's own, or a leaf issued by a local
// certificate authority that is made at the first start.
package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// File names under Options.Dir.
const (
	caCertName = "ca.pem"     // the authority's certificate, for clients' sslrootcert
	caKeyName  = "ca.key"     // its key, mode 0600
	leafName   = "server.pem" // key and certificate in one file, mode 0600, so that they change together
	lockName   = ".lock"
)

// Options say where the certificate comes from.
type Options struct {
	Dir    string // folder of the local authority; made when missing
	Domain string // endpoint hosts are *.<Domain>

	// CertFile and KeyFile name the operator's own PEM files (chain, key). Both or neither; with them Dir is not used.
	CertFile string
	KeyFile  string

	Log *slog.Logger     // nil: nothing is logged
	Now func() time.Time // nil: time.Now
}

// Store holds the current certificate. It is safe for concurrent use.
type Store struct {
	opt    Options
	caFile string
	local  bool

	current atomic.Pointer[tls.Certificate]
	renewMu sync.Mutex
	retryAt time.Time // guarded by renewMu: no renewal is tried before
}

// Load returns the certificate, making the authority and the leaf when they are missing, close to expiry or made for
// another domain. Two processes may call it on one folder at the same time. Errors are *core.Error: KindInvalid when the
// operator's files are wrong, KindInternal when the folder cannot be written.
func Load(ctx context.Context, opt Options) (*Store, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	opt.Domain = strings.ToLower(strings.Trim(opt.Domain, "."))
	s := &Store{opt: opt}

	if opt.CertFile != "" || opt.KeyFile != "" {
		cert, err := loadProvided(opt)
		if err != nil {
			return nil, err
		}
		s.current.Store(cert)
		return s, nil
	}

	if !validDomain(opt.Domain) {
		return nil, core.Invalidf("%q is not a domain name that endpoint hosts can end in", opt.Domain)
	}
	s.local = true
	s.caFile = filepath.Join(opt.Dir, caCertName)
	cert, err := issueLocked(ctx, opt)
	if err != nil {
		return nil, err
	}
	s.current.Store(cert)
	return s, nil
}

// GetCertificate is for tls.Config. A local leaf that came close to its expiry while the server ran is replaced here; if
// that fails the old one goes on being used.
func (s *Store) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert := s.current.Load()
	if s.local && s.opt.Now().After(cert.Leaf.NotAfter.Add(-renewBefore)) && s.renewMu.TryLock() {
		defer s.renewMu.Unlock()
		s.renew(hello.Context())
		cert = s.current.Load()
	}
	return cert, nil
}

// renew runs with renewMu held.
func (s *Store) renew(ctx context.Context) {
	now := s.opt.Now()
	if now.Before(s.retryAt) {
		return
	}
	cert, err := issueLocked(ctx, s.opt)
	if err != nil {
		s.retryAt = now.Add(time.Minute)
		s.opt.Log.Error("the server certificate could not be renewed", "dir", s.opt.Dir, "error", err)
		return
	}
	s.current.Store(cert)
	s.opt.Log.Info("server certificate renewed", "not_after", cert.Leaf.NotAfter)
}

// Leaf is the certificate that is shown now: what tls-server-end-point channel binding hashes.
func (s *Store) Leaf() *x509.Certificate { return s.current.Load().Leaf }

// CAFile is the path of the local authority's certificate, "" when the operator's own files are used.
func (s *Store) CAFile() string { return s.caFile }

func loadProvided(opt Options) (*tls.Certificate, error) {
	const op = "certs.load"
	if opt.CertFile == "" || opt.KeyFile == "" {
		return nil, core.Invalidf("a certificate file and a key file must be given together")
	}
	cert, err := tls.LoadX509KeyPair(opt.CertFile, opt.KeyFile)
	if err != nil {
		return nil, &core.Error{Kind: core.KindInvalid, Op: op, Message: "the certificate or key file cannot be used",
			Hint: "both must be PEM files that belong together, readable by the server", Err: err}
	}
	if now := opt.Now(); now.After(cert.Leaf.NotAfter) || now.Before(cert.Leaf.NotBefore) {
		opt.Log.Warn("the certificate is not valid now", "file", opt.CertFile,
			"not_before", cert.Leaf.NotBefore, "not_after", cert.Leaf.NotAfter)
	}
	if err := cert.Leaf.VerifyHostname("ep." + opt.Domain); opt.Domain != "" && err != nil {
		opt.Log.Warn("the certificate does not cover endpoint hosts", "file", opt.CertFile, "want", "*."+opt.Domain)
	}
	return &cert, nil
}

// validDomain accepts host names of letters, digits and hyphens.
func validDomain(d string) bool {
	if d == "" || len(d) > 200 {
		return false
	}
	for label := range strings.SplitSeq(d, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
				return false
			}
		}
	}
	return true
}

// writeFile replaces a file so that a crash leaves the old one or the new one.
func writeFile(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// LocalExpiry is when the leaf of the local authority in dir ends; ok is false when there is none.
func LocalExpiry(dir string) (at time.Time, ok bool) {
	path := filepath.Join(dir, leafName)
	cert, err := tls.LoadX509KeyPair(path, path)
	if err != nil || cert.Leaf == nil {
		return time.Time{}, false
	}
	return cert.Leaf.NotAfter, true
}
