package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/boughdb/bough/sdk"
)

// adminFile is what the server leaves in its data directory for those who may read it.
type adminFile struct {
	APIURL string `json:"api_url"`
	APIKey string `json:"api_key"`
	OrgID  string `json:"org_id"`
	UserID string `json:"user_id"`
	PgAddr string `json:"pg_addr"`
}

// connection is where the API is and how we know.
type connection struct {
	url, urlFrom string
	key, keyFrom string // keyFrom never holds the key
}

// client connects to the API that flags, environment or admin.json name.
func (a *app) client() (*sdk.Client, error) {
	conn, err := a.connect()
	if err != nil {
		return nil, err
	}
	a.conn = conn
	c, err := sdk.New(sdk.Options{BaseURL: conn.url, APIKey: conn.key, UserAgent: "bough-cli"})
	if err != nil {
		return nil, usagef("%s", strings.TrimPrefix(err.Error(), "sdk: "))
	}
	return c, nil
}

// connect decides. A flag beats the environment, which beats admin.json; a --data-dir beats an address and a key from the
// environment, because it was typed. The key of admin.json only goes to the address in it: sending it elsewhere would give it away.
func (a *app) connect() (*connection, error) {
	url, urlFrom := a.apiURL, "from --api-url"
	key, keyFrom := a.apiKey, "from --api-key"
	if a.dataDir == "" {
		if url == "" {
			url, urlFrom = a.Getenv("BOUGH_API_URL"), "from BOUGH_API_URL"
		}
		if key == "" {
			key, keyFrom = a.Getenv("BOUGH_API_KEY"), "from BOUGH_API_KEY"
		}
	}
	if url != "" && key != "" {
		return &connection{url, urlFrom, key, keyFrom}, nil
	}
	path := filepath.Join(a.adminDir(), "admin.json")
	admin, err := a.readAdmin(path)
	if err != nil {
		return nil, err
	}
	if url == "" {
		url, urlFrom = admin.APIURL, "from "+path
	}
	if key == "" {
		if strings.TrimRight(url, "/") != strings.TrimRight(admin.APIURL, "/") {
			return nil, fmt.Errorf("the API address %s needs a key of its own: give --api-key or BOUGH_API_KEY (the key in %s "+
				"is for %s)", urlFrom, path, admin.APIURL)
		}
		key, keyFrom = admin.APIKey, "from "+path
	}
	return &connection{url, urlFrom, key, keyFrom}, nil
}

func (a *app) adminDir() string {
	if a.dataDir != "" {
		return a.dataDir
	}
	if dir := a.Getenv("BOUGH_DATA_DIR"); dir != "" {
		return dir
	}
	if a.Root {
		return a.SystemDir
	}
	if dir := a.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "bough")
	}
	return filepath.Join(a.Getenv("HOME"), ".local", "share", "bough")
}

const elsewhere = "for a server elsewhere set BOUGH_API_URL and BOUGH_API_KEY"

func (a *app) readAdmin(path string) (*adminFile, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, a.adminError(path, err)
	}
	var f adminFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): restart the server, which writes it again", path, err)
	}
	if f.APIURL == "" || f.APIKey == "" {
		return nil, fmt.Errorf("%s lacks api_url or api_key: restart the server, which writes it again", path)
	}
	return &f, nil
}

// adminError says what to do when admin.json cannot be read.
func (a *app) adminError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("may not read %s: run this as the user of the server (sudo bough …), or set BOUGH_API_URL and "+
			"BOUGH_API_KEY", path)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; %s", err, elsewhere)
	}
	if filepath.Dir(path) != filepath.Clean(a.SystemDir) {
		if info, err := os.Stat(a.SystemDir); err == nil && info.IsDir() {
			return fmt.Errorf("there is no %s, but %s exists: run this with sudo or name the server with --data-dir; %s",
				path, a.SystemDir, elsewhere)
		}
	}
	return fmt.Errorf("there is no %s: is the server running? Start it with: bough serve; %s", path, elsewhere)
}

func isNetwork(err error) bool {
	_, isURL := errors.AsType[*url.Error](err)
	_, isNet := errors.AsType[net.Error](err)
	return isURL || isNet
}

// networkCause leaves out the method and address that net/http puts before the cause.
func networkCause(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
