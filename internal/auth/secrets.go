// Package auth holds what proves who somebody is: the hashes of API keys and the sealing of role passwords.
package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/boughdb/bough/internal/core"
)

// HashKey is what is stored of an API key. The secret has more than 300 random bits, so one round of SHA-256 is enough.
func HashKey(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

// Sealer encrypts what must be shown again: role passwords. AES-256-GCM with a random nonce, key from a file.
type Sealer struct {
	aead cipher.AEAD
	key  []byte
}

// keySize selects AES-256.
const keySize = 32

// OpenSealer reads the key file, and makes it (mode 0600) when it is missing. Without that file stored passwords are lost.
func OpenSealer(path string) (*Sealer, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = makeKey(path)
	}
	if err != nil {
		return nil, core.Wrap(err, "auth.key_file", "the server must be able to read and write "+path)
	}
	if len(key) != keySize {
		return nil, core.Wrap(errors.New("not a key file"), "auth.key_file", "restore "+path+" from a backup; it must hold 32 bytes")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, core.Wrap(err, "auth.key_file", "")
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, core.Wrap(err, "auth.key_file", "")
	}
	return &Sealer{aead, key}, nil
}

// makeKey links a finished file into place, so that of two servers that start at once both read the same key.
func makeKey(path string) ([]byte, error) {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if dir, err := os.Open(filepath.Dir(path)); err == nil {
		_ = dir.Sync()
		_ = dir.Close()
	}
	return os.ReadFile(path)
}

// Derive makes a secret of its own for a purpose: HKDF-SHA-256 (RFC 5869) of the key file.
func (s *Sealer) Derive(purpose string) []byte {
	out, err := hkdf.Key(sha256.New, s.key, nil, purpose, keySize)
	if err != nil {
		panic(err) // only for a length that SHA-256 cannot give
	}
	return out
}

// Seal encrypts text for one place: it opens only with the same place.
func (s *Sealer) Seal(text, place string) []byte {
	return s.aead.Seal(nil, nil, []byte(text), []byte(place))
}

// Open decrypts what Seal made for the same place.
func (s *Sealer) Open(sealed []byte, place string) (string, error) {
	b, err := s.aead.Open(nil, nil, sealed, []byte(place))
	if err != nil {
		return "", core.Wrap(err, "auth.open", "the key file is not the one that the password was sealed with")
	}
	return string(b), nil
}
