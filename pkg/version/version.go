// Package version says which vmesh this is. The build sets it.
package version

// What the build fills in by -ldflags -X.
var (
	Version = "0.0.0-dev"
	Commit  = "unknown"
	Date    = "1970-01-01T00:00:00Z"
)
