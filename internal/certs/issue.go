package certs

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/boughdb/bough/internal/core"
)

const (
	caLife      = 10 * 365 * 24 * time.Hour
	leafLife    = 397 * 24 * time.Hour // some TLS stacks refuse longer ones
	renewBefore = 30 * 24 * time.Hour
	backdate    = time.Hour // clients' clocks may be behind
)

type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// issueLocked returns a good leaf, holding the folder's lock so that two starts do not make two authorities.
func issueLocked(ctx context.Context, opt Options) (*tls.Certificate, error) {
	const op = "certs.issue"
	hint := "the server must be able to write " + opt.Dir
	if err := os.MkdirAll(opt.Dir, 0o755); err != nil {
		return nil, core.Wrap(err, op, hint)
	}
	unlock, err := lock(ctx, filepath.Join(opt.Dir, lockName))
	if err != nil {
		return nil, core.Wrap(err, op, hint)
	}
	defer unlock()

	ca, err := loadOrMakeCA(opt)
	if err != nil {
		return nil, core.Wrap(err, op, hint)
	}
	path := filepath.Join(opt.Dir, leafName)
	if cert, ok := loadLeaf(path, ca, opt); ok {
		return cert, nil
	}
	cert, err := makeLeaf(path, ca, opt)
	if err != nil {
		return nil, core.Wrap(err, op, hint)
	}
	return cert, nil
}

// lock takes an exclusive flock; the kernel drops it when the process dies.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// loadOrMakeCA keeps the authority that users may have told their clients to trust for as long as it can sign. The key is
// written before the certificate: a crash in between leaves a key, and the next start makes the certificate for it.
func loadOrMakeCA(opt Options) (*authority, error) {
	certPath, keyPath := filepath.Join(opt.Dir, caCertName), filepath.Join(opt.Dir, caKeyName)
	key, keyErr := readKey(keyPath)
	cert, certErr := readCert(certPath)
	now := opt.Now()
	if keyErr == nil && certErr == nil && cert.IsCA && samePublicKey(cert, key) &&
		now.After(cert.NotBefore) && now.Add(renewBefore).Before(cert.NotAfter) {
		return &authority{cert: cert, key: key}, nil
	}
	if certErr == nil {
		opt.Log.Warn("the local certificate authority is replaced: clients that trust it must be given the new one",
			"file", certPath, "not_after", cert.NotAfter, "key_error", keyErr)
	}
	// An authority that ran out gets a new key with its new certificate.
	if keyErr != nil || certErr == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
		data, err := encodeKey(key)
		if err != nil {
			return nil, err
		}
		if err := writeFile(keyPath, data, 0o600); err != nil {
			return nil, err
		}
	}
	tmpl := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Bough local CA"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	if err := writeFile(certPath, encodeCert(der), 0o644); err != nil {
		return nil, err
	}
	return &authority{cert: cert, key: key}, nil
}

// leafNames are the names the leaf must cover.
func leafNames(domain string) (dns []string, ips []net.IP) {
	dns = []string{"localhost", domain, "*." + domain}
	slices.Sort(dns)
	return slices.Compact(dns), []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
}

// loadLeaf tells with ok=false that a new leaf is needed, whatever the reason.
func loadLeaf(path string, ca *authority, opt Options) (*tls.Certificate, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, false
	}
	cert, err := tls.X509KeyPair(data, data)
	if err != nil || cert.Leaf.CheckSignatureFrom(ca.cert) != nil {
		return nil, false
	}
	now := opt.Now()
	if now.Before(cert.Leaf.NotBefore) || now.Add(renewBefore).After(cert.Leaf.NotAfter) {
		return nil, false
	}
	dns, ips := leafNames(opt.Domain)
	have := slices.Sorted(slices.Values(cert.Leaf.DNSNames))
	if !slices.Equal(have, dns) || len(cert.Leaf.IPAddresses) != len(ips) {
		return nil, false
	}
	return &cert, true
}

func makeLeaf(path string, ca *authority, opt Options) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := opt.Now()
	notAfter := now.Add(leafLife)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	dns, ips := leafNames(opt.Domain)
	tmpl := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "localhost"}, // a fixed name: common names are limited to 64 characters
		NotBefore:   now.Add(-backdate),
		NotAfter:    notAfter,
		DNSNames:    dns,
		IPAddresses: ips,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	data := append(keyPEM, encodeCert(der)...)
	cert, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	if err := writeFile(path, data, 0o600); err != nil {
		return nil, err
	}
	return &cert, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func readCert(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New(path + " holds no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func readKey(path string) (crypto.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New(path + " holds no key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New(path + " holds a key that cannot sign")
	}
	return signer, nil
}

func samePublicKey(cert *x509.Certificate, key crypto.Signer) bool {
	a, errA := x509.MarshalPKIXPublicKey(cert.PublicKey)
	b, errB := x509.MarshalPKIXPublicKey(key.Public())
	return errA == nil && errB == nil && bytes.Equal(a, b)
}
