package istio_test
import ("testing";"os";"runtime/pprof";"runtime";"context";"github.com/vmesh-io/vmesh/pkg/apis/istio")
func TestHeapProfile(t *testing.T){
 runtime.MemProfileRate=512
 kinds,_:=istio.Kinds()
 for _,k:=range kinds{ if err:=k.Warm(context.Background());err!=nil{t.Fatal(err)}}
 runtime.GC();runtime.GC()
 f,_:=os.Create("/tmp/heap.prof"); pprof.Lookup("heap").WriteTo(f,0); f.Close()
 runtime.KeepAlive(kinds)
}
